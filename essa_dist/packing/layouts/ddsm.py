"""DDSM mammograms: ``ddsm_raw/`` with the lists ``ddsm_raw_image_lists/{train,val,test}.txt``, or class folders.

With lists the class is what a file's name begins with, ``normal_``, ``benign_`` or ``cancer_``; else it is the folder.
Two classes, as in the reference: normal, and benign or cancer. The case, whose letter and number stand in the name
(``C_0045_1.LEFT_CC``), is the patient.
"""

from pathlib import Path, PurePosixPath

from essa_dist.errors import UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, Provenance, make_key
from essa_dist.packing.layouts.published import by_image, class_folders, first_group
from essa_dist.packing.layouts.splitlists import split_by_lists
from essa_dist.packing.layouts.walk import images
from essa_dist.packing.source import Source

RAW, LISTS = "ddsm_raw", "ddsm_raw_image_lists"
FINDINGS = ("normal", "benign", "cancer")
CLASSES = {2: ("normal", "abnormal"), 3: FINDINGS}
CASE = r"(?<![A-Za-z])([A-D]_\d{4})_"
MASK = "_mask"
"""End of the names of the outlines that some copies hold beside the mammograms; they are no images to pack."""
DEFAULTS = Provenance(
    "Digital Database for Screening Mammography", "", "Heath et al. 2001, University of South Florida"
)


def detect(src: Path) -> bool:
    """By its two folders. Class folders alone could be of any set: there ``layout=ddsm`` must be said."""
    return (src / RAW).is_dir() and (src / LISTS).is_dir()


def find(src: Path, config: LayoutConfig) -> Found:
    """Mammograms by finding; ``ddsm_classes=3`` keeps benign and cancer apart."""
    label_of = {name: name if config.ddsm_classes == 3 else CLASSES[2][name != "normal"] for name in FINDINGS}
    if (src / RAW).is_dir():
        sources = _by_name(src / RAW, label_of)
    elif any((src / name).is_dir() for name in FINDINGS):
        sources = class_folders(src, label_of, patient=CASE)
    else:
        raise UsageError(f"{src} has neither {RAW} nor {', '.join(FINDINGS)}: layout=ddsm needs one of these")
    pictures = [one for one in sources if not one.path.stem.lower().endswith(MASK)]
    notes = [f"{n} outlines (*{MASK}) were left out"] if (n := len(sources) - len(pictures)) else []
    classes = CLASSES[config.ddsm_classes]
    if not config.reference_split or not (src / LISTS).is_dir():
        return Found(pictures, classes, "single", defaults=DEFAULTS, notes=tuple(notes))
    listed, missing, said = split_by_lists(pictures, src / LISTS, parts=1)
    listed, parted = by_image(listed, "cases")
    return Found(
        listed, classes, "single", defaults=DEFAULTS, notes=(*notes, *said, *parted), missing=missing
    )


def _by_name(root: Path, label_of: dict[str, str]) -> list[Source]:
    sources = []
    for path in images(root).files:
        finding = _finding(path)
        sources.append(
            Source(
                root / path,
                make_key(path.as_posix()),
                label_of[finding],
                patient=first_group(CASE, path.name),
            )
        )
    return sources


def _finding(path: PurePosixPath) -> str:
    finding = path.name.partition("_")[0]
    if finding not in FINDINGS:
        raise UsageError(
            f"{RAW}/{path}: its name must begin with {'_, '.join(FINDINGS)}_, which is its class"
        )
    return finding


LAYOUT = Layout(detect, find, frozenset({"reference_split", "ddsm_classes"}))
