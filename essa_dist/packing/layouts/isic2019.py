"""ISIC 2019: ``ISIC_2019_Training_GroundTruth.csv`` (one-hot) and ``ISIC_2019_Training_Input/*.jpg``.

``ISIC_2019_Training_Metadata.csv``, if it is there, says which images show one lesion.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, Provenance, make_key
from essa_dist.packing.layouts.listing import read_table
from essa_dist.packing.layouts.published import by_image, first_folder, one_hot, require, seed_42
from essa_dist.packing.layouts.walk import NOT_THERE, locate
from essa_dist.packing.source import Source

TRUTH, METADATA = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
UNKNOWN = "UNK"
"""A column of its own; no training image has it. One that has is packed without a label."""
HELD_OUT = 0.2
DEFAULTS = Provenance(
    "https://challenge.isic-archive.com/data/#2019",
    "CC BY-NC 4.0",
    "BCN_20000 (Hospital Clinic de Barcelona), HAM10000 (ViDIR Group, Medical University of Vienna), MSK (anonymous)",
)


def detect(src: Path) -> bool:
    """By the name of the table."""
    return (src / TRUTH).is_file()


def find(src: Path, config: LayoutConfig) -> Found:
    """Eight classes; 80/10/10 by the reference's rule, or by lesion where ``reference_split=false``."""
    (truth,) = require(src, "isic2019", TRUTH)
    table = read_table(truth)
    folder = first_folder(src, "ISIC_2019_Training_Input", "train")
    names = table.column("image")
    hot = (*CLASSES, UNKNOWN) if UNKNOWN in table.columns else CLASSES
    labels = [None if label == UNKNOWN else label for label in one_hot(table, hot)]
    lesions = lesion_of(src / METADATA)
    splits = seed_42(len(table), HELD_OUT) if config.reference_split else [None] * len(table)
    sources, missing = diagnosed(folder, names, labels, splits, lesions)
    notes: list[str] = []
    if config.reference_split:
        sources, notes = by_image(sources, "lesions")
    return Found(sources, CLASSES, "single", defaults=DEFAULTS, notes=tuple(notes), missing=tuple(missing))


def diagnosed(
    folder: Path,
    names: Sequence[str],
    labels: Sequence[str | None],
    splits: Sequence[str | None],
    lesions: Mapping[str, str],
) -> tuple[list[Source], list[tuple[Path, str]]]:
    """The images of a table's rows that are there, and those that are not, with the reason."""
    sources, missing = [], []
    rows = zip(names, labels, splits, locate([f"{name}.jpg" for name in names], folder), strict=True)
    for name, label, split, file in rows:
        if file is None:
            missing.append((folder / f"{name}.jpg", NOT_THERE))
        else:
            sources.append(Source(file, make_key(name), label, patient=lesions.get(name), split=split))
    return sources, missing


def lesion_of(metadata: Path) -> dict[str, str]:
    """The lesion of each image, from a table with columns ``image`` and ``lesion_id``; empty where there is no table."""
    if not metadata.is_file():
        return {}
    table = read_table(metadata)
    pairs = zip(table.column("image"), table.column("lesion_id"), strict=True)
    return {image: lesion for image, lesion in pairs if lesion}


LAYOUT = Layout(detect, find, frozenset({"reference_split"}))
