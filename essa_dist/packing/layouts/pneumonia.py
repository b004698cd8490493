"""5,856 chest X-rays of children (Kermany et al. 2018): ``{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg``.

Two forms of names are about: ``BACTERIA-1008087-0001`` (patient, then image; the authors' page) and
``person1_bacteria_2``, ``IM-0115-0001``, ``NORMAL2-IM-1427-0001``. In the second ``person1_bacteria`` and
``person1_virus`` are taken for two children: the numbers of the two kinds begin at 1 each, and no page says otherwise.
"""

from pathlib import Path

from essa_dist.errors import UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, Provenance
from essa_dist.packing.layouts.published import SPLITS, class_folders

CLASSES = ("NORMAL", "PNEUMONIA")
PATIENT = r"^(person\d+_[a-z]+)_\d+|^((?:[A-Z0-9]+-)?(?:IM|NORMAL|BACTERIA|VIRUS)-\d+)-"
DEFAULTS = Provenance(
    "https://data.mendeley.com/datasets/rscbjbr9sj",
    "CC BY 4.0",
    "Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010",
)


def detect(src: Path) -> bool:
    """By the names of splits and classes."""
    return all((src / split / name).is_dir() for split in ("train", "test") for name in CLASSES)


def find(src: Path, config: LayoutConfig) -> Found:
    """Two classes in the published splits; the first edition has no ``val``, others 16 images in it."""
    if not detect(src):
        raise UsageError(
            f"{src} lacks one of train and test with folders {' and '.join(CLASSES)}: layout=pneumonia needs them"
        )
    names = {name: name for name in CLASSES}
    sources = [
        one for split in SPLITS for one in class_folders(src / split, names, split=split, patient=PATIENT)
    ]
    return Found(sources, CLASSES, "single", defaults=DEFAULTS)


LAYOUT = Layout(detect, find)
