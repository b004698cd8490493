"""NCT-CRC-HE-100K (training) and CRC-VAL-HE-7K (test): nine class folders of 224-pixel TIFF tiles each.

The 100,000 have no split of their own, so that ``splits`` may divide them; without it they are ``train``. Names of
tiles don't say which of the 86 patients they are of.
"""

from pathlib import Path

from essa_dist.errors import UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, Provenance
from essa_dist.packing.layouts.published import class_folders
from essa_dist.packing.source import Source

CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
FOLDERS = {"NCT-CRC-HE-100K": None, "NCT-CRC-HE-100K-NONORM": None, "CRC-VAL-HE-7K": "test"}
DEFAULTS = Provenance(
    "https://zenodo.org/records/1214456", "CC BY 4.0", "Kather, Halama, Marx 2018, doi:10.5281/zenodo.1214456"
)


def detect(src: Path) -> bool:
    """By the names of the folders."""
    return any((src / name).is_dir() for name in FOLDERS)


def find(src: Path, config: LayoutConfig) -> Found:
    """Nine tissue classes. The two variants of the training tiles (colours normalised or not) exclude each other."""
    there = [name for name in FOLDERS if (src / name).is_dir()]
    if not there:
        raise UsageError(
            f"{src} has none of {', '.join(FOLDERS)}: layout=nct_crc needs the folder that holds them"
        )
    if len([name for name in there if FOLDERS[name] is None]) > 1:
        raise UsageError(
            f"{src} holds {' and '.join(there[:2])}, the same tiles twice: move one of them away"
        )
    sources: list[Source] = []
    for name in there:
        for one in class_folders(src / name, {label: label for label in CLASSES}):
            sources.append(one._replace(key=f"{name}/{one.key}", split=FOLDERS[name]))
    return Found(sources, CLASSES, "single", defaults=DEFAULTS)


LAYOUT = Layout(detect, find)
