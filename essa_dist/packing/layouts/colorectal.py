"""Kather's 5,000 colorectal tiles of 2016: eight class folders ``01_TUMOR`` ... ``08_EMPTY``.

Files are called ``1A11_CRC-Prim-HE-07_022.tif_Row_1_Col_151.tif``: the slide is ``CRC-Prim-HE-07``, one of ten.
"""

from pathlib import Path

from essa_dist.errors import DataError, UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, Provenance
from essa_dist.packing.layouts.published import by_image, class_folders
from essa_dist.packing.layouts.splitlists import split_by_lists

CLASSES = (
    "01_TUMOR",
    "02_STROMA",
    "03_COMPLEX",
    "04_LYMPHO",
    "05_DEBRIS",
    "06_MUCOSA",
    "07_ADIPOSE",
    "08_EMPTY",
)
SLIDE = r"_(CRC-Prim-HE-\d+)"
TILES = "Kather_texture_2016_image_tiles_5000"
DEFAULTS = Provenance(
    "https://zenodo.org/records/53169", "CC BY 4.0", "Kather et al. 2016, doi:10.1038/srep27988"
)


def detect(src: Path) -> bool:
    """By the names of the class folders."""
    return all((_root(src) / name).is_dir() for name in CLASSES)


def find(src: Path, config: LayoutConfig) -> Found:
    """Eight tissue classes; the lists ``train.txt``, ``val.txt``, ``test.txt`` divide them where they are there."""
    root = _root(src)
    lacking = [name for name in CLASSES if not (root / name).is_dir()]
    if lacking:
        raise UsageError(
            f"{src} has no {lacking[0]}: layout=colorectal needs the folders {', '.join(CLASSES)}"
        )
    sources = class_folders(root, {name: name for name in CLASSES}, patient=SLIDE)
    if not sources:
        raise DataError(f"no images in {root}: layout=colorectal needs them in {', '.join(CLASSES)}")
    if not config.reference_split:
        return Found(sources, CLASSES, "single", defaults=DEFAULTS)
    sources, missing, notes = split_by_lists(sources, src)
    sources, parted = by_image(sources, "slides")
    return Found(sources, CLASSES, "single", defaults=DEFAULTS, notes=(*notes, *parted), missing=missing)


def _root(src: Path) -> Path:
    inside = [src / TILES / TILES, src / TILES]
    return next((path for path in inside if (path / CLASSES[0]).is_dir()), src)


LAYOUT = Layout(detect, find, frozenset({"reference_split"}))
