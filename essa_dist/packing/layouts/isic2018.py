"""ISIC 2018, task 1 (lesion segmentation) or task 3 (seven diagnoses), as the challenge's archives unpack.

Task 1: ``ISIC2018_Task1-2_<Part>_Input/X.jpg`` with ``ISIC2018_Task1_<Part>_GroundTruth/X_segmentation.png``.
Task 3: ``ISIC2018_Task3_<Part>_Input/X.jpg`` with a one-hot ``ISIC2018_Task3_<Part>_GroundTruth.csv``, mostly in a
folder of that name. Part: Training, Validation, Test.
"""

from pathlib import Path

from essa_dist.errors import UsageError
from essa_dist.packing.layouts import masks
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, Provenance, make_key
from essa_dist.packing.layouts.isic2019 import diagnosed, lesion_of
from essa_dist.packing.layouts.listing import read_table
from essa_dist.packing.layouts.published import one_hot
from essa_dist.packing.layouts.walk import images
from essa_dist.packing.source import Source

PARTS = {"Training": "train", "Validation": "val", "Test": "test"}
INPUT = {"segmentation": "ISIC2018_Task1-2_{}_Input", "classification": "ISIC2018_Task3_{}_Input"}
TRUTH = {"segmentation": "ISIC2018_Task1_{}_GroundTruth", "classification": "ISIC2018_Task3_{}_GroundTruth"}
LESIONS = "ISIC2018_Task3_Training_LesionGroupings.csv"
CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
MASK_CLASSES = ("background", "lesion")
SOURCE = "https://challenge.isic-archive.com/data/#2018"
DEFAULTS = {
    "segmentation": Provenance(SOURCE, "CC0", "ISIC 2018 challenge (Codella et al. 2018, arXiv:1902.03368)"),
    "classification": Provenance(
        SOURCE, "CC BY-NC 4.0", "HAM10000 (ViDIR Group, Medical University of Vienna; Tschandl et al. 2018)"
    ),
}


def detect(src: Path) -> bool:
    """By the names of the folders of training images."""
    return any((src / name.format("Training")).is_dir() for name in INPUT.values())


def find(src: Path, config: LayoutConfig) -> Found:
    """The images of one task; a part without ground truth is left out, with a note."""
    task = config.isic2018_task or _only_task(src)
    sources: list[Source] = []
    missing: list[tuple[Path, str]] = []
    notes: list[str] = []
    for part, split in PARTS.items():
        folder, truth = src / INPUT[task].format(part), _truth(src, task, part)
        if not folder.is_dir():
            notes.append(f"there is no {folder.name}: the set has no split {split}")
        elif truth is None:
            notes.append(f"{folder.name} is left out: there is no {TRUTH[task].format(part)}")
        elif task == "segmentation":
            found, said = _segmented(folder, truth, split)
            sources, notes = sources + found, notes + said
        else:
            found, lost = _diagnosed(folder, truth, split, lesion_of(src / LESIONS))
            sources, missing = sources + found, missing + lost
    if not sources and not missing:
        raise UsageError(
            f"{src} has none of {', '.join(INPUT[task].format(part) for part in PARTS)} with its ground truth: "
            "layout=isic2018 needs them as the archives unpack"
        )
    segmented = task == "segmentation"
    return Found(
        sources,
        () if segmented else CLASSES,
        "none" if segmented else "single",
        MASK_CLASSES if segmented else (),
        defaults=DEFAULTS[task],
        notes=tuple(notes),
        missing=tuple(missing),
    )


def _only_task(src: Path) -> str:
    there = [task for task, name in INPUT.items() if (src / name.format("Training")).is_dir()]
    if len(there) == 2:
        raise UsageError(f"{src} holds tasks 1 and 3: set isic2018_task=segmentation or classification")
    return there[0] if there else "segmentation"


def _truth(src: Path, task: str, part: str) -> Path | None:
    name = TRUTH[task].format(part)
    if task == "segmentation":
        return src / name if (src / name).is_dir() else None
    return next((path for path in (src / f"{name}.csv", src / name / f"{name}.csv") if path.is_file()), None)


def _segmented(folder: Path, truth: Path, split: str) -> tuple[list[Source], list[str]]:
    files = images(folder).files
    found, notes = masks.from_folder(files, truth, "_segmentation")
    return [
        Source(folder / path, make_key(path.as_posix()), split=split, mask=mask)
        for path, mask in zip(files, found, strict=True)
    ], notes


def _diagnosed(
    folder: Path, truth: Path, split: str, lesions: dict[str, str]
) -> tuple[list[Source], list[tuple[Path, str]]]:
    table = read_table(truth)
    return diagnosed(folder, table.column("image"), one_hot(table, CLASSES), [split] * len(table), lesions)


LAYOUT = Layout(detect, find, frozenset({"isic2018_task"}))
