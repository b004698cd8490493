"""APTOS 2019 Blindness Detection: ``train.csv`` (id_code, diagnosis) and ``train_images/*.png``.

The competition's test images have no labels and are left out.
"""

from pathlib import Path

from essa_dist.errors import DataError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, Provenance, make_key
from essa_dist.packing.layouts.listing import header, read_table
from essa_dist.packing.layouts.published import require, seed_42
from essa_dist.packing.layouts.walk import NOT_THERE, locate
from essa_dist.packing.source import Source

GRADES = ("No DR", "Mild", "Moderate", "Severe", "Proliferative DR")
HELD_OUT = 0.3
DEFAULTS = Provenance(
    "https://www.kaggle.com/c/aptos2019-blindness-detection",
    "rules of the Kaggle competition",
    "APTOS 2019 Blindness Detection, Asia Pacific Tele-Ophthalmology Society and Aravind Eye Hospital",
)


def detect(src: Path) -> bool:
    """By the columns of ``train.csv``."""
    return src.is_dir() and {"id_code", "diagnosis"} <= set(header(src / "train.csv"))


def find(src: Path, config: LayoutConfig) -> Found:
    """Grades 0 to 4; 70/15/15 by the reference's rule."""
    listing, folder = require(src, "aptos2019", "train.csv", "train_images")
    table = read_table(listing)
    ids, grades = table.column("id_code"), table.column("diagnosis")
    splits = seed_42(len(table), HELD_OUT) if config.reference_split else [None] * len(table)
    sources, missing = [], []
    for row, file in enumerate(locate([f"{name}.png" for name in ids], folder)):
        if grades[row] not in ("0", "1", "2", "3", "4"):
            raise DataError(f"{table.at(row)}: diagnosis {grades[row]!r}; it is a grade from 0 to 4")
        if file is None:
            missing.append((folder / f"{ids[row]}.png", NOT_THERE))
            continue
        sources.append(Source(file, make_key(ids[row]), GRADES[int(grades[row])], split=splits[row]))
    return Found(sources, GRADES, "single", defaults=DEFAULTS, missing=tuple(missing))


LAYOUT = Layout(detect, find, frozenset({"reference_split"}))
