"""A folder of images: class folders, split folders with or without class folders inside, or images alone.

With a folder of masks beside it, ``images/`` and ``masks/``, each image has the mask of its name.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from essa_dist.data.manifest import UNLABELLED
from essa_dist.errors import UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, make_key, single_label, some
from essa_dist.packing.layouts.masks import from_folder, from_siblings, mask_folder, without_images
from essa_dist.packing.layouts.walk import images
from essa_dist.packing.source import Source

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys((UNLABELLED, "unlabeled"), UNLABELLED),
}
"""Where all top-level folders have such names they are splits; else they are classes."""


def find(src: Path, config: LayoutConfig) -> Found:
    """All images below ``src``, with class and split by folder."""
    files, others = images(src)
    notes = [f"{src}: {others} files that are not images were ignored"] if others else []
    folder = mask_folder(config)
    if folder is None:
        files, masks, said = from_siblings(src, files, config.mask_suffix)
    else:
        masks, said = from_folder(files, folder, config.mask_suffix)
    has_masks = any(mask is not None for mask in masks)
    inner = [without_images(path) for path in files] if has_masks else files
    has_splits = _has_splits(src, inner)
    sources = []
    for path, named, mask in zip(files, inner, masks, strict=True):
        split = SPLIT_FOLDERS[named.parts[0].lower()] if has_splits else None
        folders = named.parts[1 if has_splits else 0 : -1]
        label = folders[0] if folders and split != UNLABELLED else None
        sources.append(Source(src / path, make_key(named.as_posix()), label, split=split, mask=mask))
    classes, kind = single_label(sources)
    return Found(sources, classes, kind, config.mask_classes if has_masks else (), notes=(*notes, *said))


def _has_splits(root: Path, files: Sequence[PurePosixPath]) -> bool:
    tops = sorted({path.parts[0] for path in files if len(path.parts) > 1})
    loose = next((path for path in files if len(path.parts) == 1), None)
    if tops and loose is not None:
        raise UsageError(f"{root / loose} lies beside folders of images: move it into one of {some(tops)}")
    splits = [name for name in tops if name.lower() in SPLIT_FOLDERS]
    if len(splits) == len(tops):
        return bool(tops)
    if any(SPLIT_FOLDERS[name.lower()] == "train" for name in splits):
        others = [name for name in tops if name not in splits]
        raise UsageError(
            f"{root}: {some(splits)} name splits but {some(others)} can't: use only "
            f"{', '.join(dict.fromkeys(SPLIT_FOLDERS.values()))}, or only folders of classes"
        )
    return False


LAYOUT = Layout(Path.is_dir, find, frozenset({"masks", "mask_suffix", "mask_classes"}))
