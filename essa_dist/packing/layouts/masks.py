"""Which segmentation mask belongs to which image: the one of its name, in a folder of masks."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from essa_dist.errors import DataError, UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import some, stem
from essa_dist.packing.layouts.walk import walk

IMAGES, MASKS = "images", "masks"


def mask_folder(config: LayoutConfig) -> Path | None:
    """The folder named by ``masks=``; UsageError where there is none such."""
    if config.masks is None:
        return None
    if not Path(config.masks).is_dir():
        raise UsageError(f"masks={config.masks} is no folder; name the folder that holds the masks")
    return Path(config.masks)


def beside(root: Path) -> tuple[Path, Path | None]:
    """``images`` and ``masks`` of a folder that has both, else the folder itself and None."""
    both = (root / IMAGES).is_dir() and (root / MASKS).is_dir()
    return (root / IMAGES, root / MASKS) if both else (root, None)


def from_folder(
    files: Sequence[PurePosixPath], masks: Path, suffix: str
) -> tuple[list[Path | None], list[str]]:
    """The mask of each image, whose path is below the folder of images, and notes on those without."""
    there = {_name(path): masks / path for path in walk(masks).files}
    return _match([_name(path) + suffix for path in files], there, masks)


def from_siblings(
    root: Path, files: Sequence[PurePosixPath], suffix: str
) -> tuple[list[PurePosixPath], list[Path | None], list[str]]:
    """Images, their masks and notes, where somewhere below ``root`` a folder ``images`` lies beside one ``masks``.

    Where there is none, all files are images without masks.
    """
    holders = [{path.parts[:i] for path in files for i in _places(path, name)} for name in (IMAGES, MASKS)]
    both = holders[0] & holders[1]
    if not both:
        return list(files), [None] * len(files), []
    pictures, there = [], {}
    for path in files:
        if any(path.parts[:i] in both for i in _places(path, MASKS)):
            there[_name(path)] = root / path
        else:
            pictures.append(path)
    wanted = []
    for path in pictures:
        parts = list(path.parts)
        for i in _places(path, IMAGES):
            if path.parts[:i] in both:
                parts[i] = MASKS
        wanted.append(_name(PurePosixPath(*parts)) + suffix)
    found, notes = _match(wanted, there, root)
    return pictures, found, notes


def without_images(path: PurePosixPath) -> PurePosixPath:
    """The path without folders called ``images``, which say nothing of class or split."""
    return PurePosixPath(*(part for part in path.parts if part != IMAGES))


def _places(path: PurePosixPath, name: str) -> list[int]:
    return [i for i, part in enumerate(path.parts[:-1]) if part == name]


def _name(path: PurePosixPath) -> str:
    return (path.parent / stem(path.name)).as_posix()


def _match(wanted: Sequence[str], there: dict[str, Path], where: Path) -> tuple[list[Path | None], list[str]]:
    found = [there.get(name) for name in wanted]
    lonely = [name for name, mask in zip(wanted, found, strict=True) if mask is None]
    if len(lonely) == len(wanted):
        raise DataError(
            f"none of the {len(wanted)} images has a mask in {where}: there is no {wanted[0]}, but "
            f"{some(sorted(there), 2)}; mask_suffix= says what a mask's name has behind the image's"
        )
    notes = []
    if lonely:
        notes.append(f"{len(lonely)} of {len(wanted)} images have no mask, e.g. {lonely[0]} in {where}")
    if unused := len(there) - len(set(wanted) & set(there)):
        notes.append(f"{unused} masks in {where} belong to no image")
    return found, notes
