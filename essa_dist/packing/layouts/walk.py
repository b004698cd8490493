"""The images below a folder, and those that a list names."""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from essa_dist.errors import DataError
from essa_dist.packing.layouts.found import some, stem

SKIPPED_FOLDERS = ("__MACOSX",)
"""Beside hidden ones."""
NOT_THERE = "no such file"


class Walk(NamedTuple):
    """Relative paths of all images below a folder, sorted, and how many other files there are."""

    files: list[PurePosixPath]
    others: int


def walk(root: Path) -> Walk:
    """All images below ``root``: by suffix, or by content where the name has none. Links to folders are followed.

    Hidden files and folders don't count. A file is opened only where its suffix tells nothing.
    """
    from essa_dist.packing.readers import looks_like_image

    files, others = [], 0
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if _enters(Path(folder) / name))
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in sorted(names):
            if name.startswith("."):
                continue
            if looks_like_image(Path(folder) / name):
                files.append(inside / name)
            else:
                others += 1
    return Walk(files, others)


def _enters(folder: Path) -> bool:
    """Not a hidden folder, nor a link to a folder that it lies in itself, which would never end."""
    if folder.name.startswith(".") or folder.name in SKIPPED_FOLDERS:
        return False
    return not folder.is_symlink() or not folder.parent.resolve().is_relative_to(folder.resolve())


def images(root: Path) -> Walk:
    """:func:`walk`; DataError where there are no images."""
    from essa_dist.packing.readers import SUFFIXES

    found = walk(root)
    if not found.files:
        raise DataError(
            f"no images in {root} ({found.others} other files); known suffixes: {', '.join(SUFFIXES)}"
        )
    return found


def locate(listed: Sequence[str], root: Path) -> list[Path | None]:
    """The file below ``root`` for each path of a list, or None. Folders above it and the suffix may differ.

    Published lists and the copies that people have differ in the folders on top (``images_001/images/X.png`` or
    ``X.png``) and in the format. So paths are compared by their last n parts without the suffix, with one n for the
    whole list, by which all its paths can be told apart: the one that finds the most files, the largest of equals.
    Raises DataError where a path fits two files that nothing tells apart.
    """
    below = walk(root).files
    deepest = max((len(PurePosixPath(path).parts) for path in listed), default=1)
    best: list[list[PurePosixPath]] = [[] for _ in listed]
    most = 0
    different = len({_tail(path, deepest) for path in listed})
    for depth in range(deepest, 0, -1):
        if len({_tail(path, depth) for path in listed}) < different:
            break
        by_tail = defaultdict(list)
        for path in below:
            by_tail[_tail(path.as_posix(), depth)].append(path)
        hits = [by_tail.get(_tail(path, depth), []) for path in listed]
        count = len({hit[0] for hit in hits if hit})
        if count > most:
            best, most = hits, count
    return [_one_of(path, hits, root) for path, hits in zip(listed, best, strict=True)]


def _one_of(listed: str, hits: Sequence[PurePosixPath], root: Path) -> Path | None:
    exact = [path for path in hits if path.name == PurePosixPath(listed).name]
    narrowed = exact or list(hits)
    if len(narrowed) > 1:
        raise DataError(
            f"{listed} may be any of {some(narrowed, 3)} in {root}: name the folder of the ones to take"
        )
    return root / narrowed[0] if narrowed else None


def _tail(path: str, depth: int) -> str:
    *folders, name = PurePosixPath(path).parts[-depth:]
    return "/".join([*folders, _stem(name)])


_stem = lru_cache(maxsize=1 << 20)(stem)
