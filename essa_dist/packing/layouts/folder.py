"""A folder of images: class folders, split folders with or without class folders inside, or images alone.

With a folder of masks beside it, ``images/`` and ``masks/``, each image has the mask of its name.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from essa_dist.data.manifest import UNLABELLED
from essa_dist.errors import UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, legible, make_key, single_label, some, stem
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

PLAIN_FOLDERS = ("images", "image", "imgs", "img", "dicom", "dicoms", "files", "data")
"""Where the only top-level folder has such a name, it is no class."""
LISTS = (".csv", ".tsv", ".parquet")


def find(src: Path, config: LayoutConfig) -> Found:
    """All images below ``src``, with class and split by folder."""
    files, others = images(src)
    notes = [f"{src}: files that are not images, and are ignored: {others}"] if others else []
    notes += _lists(src)
    folder = mask_folder(config)
    if folder is None:
        files, masks, said = from_siblings(src, files, config.mask_suffix)
    else:
        masks, said = from_folder(files, folder, config.mask_suffix)
    has_masks = any(mask is not None for mask in masks)
    inner = [without_images(path) for path in files] if has_masks else files
    has_splits = _has_splits(src, inner)
    plain = {path.parts[0].lower() for path in inner}
    has_classes = not (len(plain) == 1 and plain <= set(PLAIN_FOLDERS))
    sources = []
    for path, named, mask, key in zip(files, inner, masks, _keys(inner), strict=True):
        split = SPLIT_FOLDERS[named.parts[0].lower()] if has_splits else None
        folders = named.parts[1 if has_splits else 0 : -1]
        label = legible(folders[0]) if folders and has_classes and split != UNLABELLED else None
        sources.append(Source(src / path, key, label, split=split, mask=mask))
    classes, kind = single_label(sources)
    if len(classes) == 1 and any(len(path.parts) > 2 for path in inner) and not has_splits:
        folder_in = src / inner[0].parts[0]
        notes.append(f"{folder_in} is taken for the only class; if it is none: essa pack {folder_in}")
    return Found(sources, classes, kind, config.mask_classes if has_masks else (), notes=(*notes, *said))


def _keys(files: Sequence[PurePosixPath]) -> list[str]:
    """Paths without suffix; with it where only that tells two files apart, as ``scan_dcm`` and ``scan_png``."""
    keys = [make_key(path.as_posix()) for path in files]
    count = Counter(keys)
    return [
        key if count[key] == 1 else f"{key}_{path.name[len(stem(path.name)) :].strip('.').replace('.', '_')}"
        for key, path in zip(keys, files, strict=True)
    ]


def _lists(src: Path) -> list[str]:
    lists = sorted(path.name for path in src.iterdir() if path.suffix.lower() in LISTS)
    return [f"{src / name} may list these images: essa pack {src / name}" for name in lists[:1]]


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
