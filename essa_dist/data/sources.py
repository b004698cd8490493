"""Find the images to pack: an image folder or a CSV, as a list of files with key, class and split."""

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from essa_dist.data.manifest import UNLABELLED
from essa_dist.errors import DataError, UsageError
from essa_dist.nearest import nearest

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
SPLIT_FOLDERS = ("train", "val", "test", UNLABELLED)
"""Top-level folders of these names, and no others, are splits; any other top-level folder is a class."""
COLUMNS = ("path", "label", "split", "key")
"""Columns of a CSV: ``path`` (from the CSV's folder) is required; ``key`` replaces the key made from the path."""


class Source(NamedTuple):
    """One image to pack."""

    path: Path
    key: str
    label: str | None
    split: str | None


def find_sources(src: Path) -> list[Source]:
    """All images of a folder or CSV, in the order of their keys; the split ``unlabelled`` loses its labels.

    Raises UsageError for a path that does not exist or a CSV without the right columns, DataError where there are
    no images or two have the same key.
    """
    if not src.exists():
        raise UsageError(
            f"no such file or folder: {src}; give a folder of images or a CSV with a `path` column"
        )
    found = _from_folder(src) if src.is_dir() else _from_csv(src)
    sources = [one._replace(label=None) if one.split == UNLABELLED else one for one in found]
    _refuse_duplicates(sources)
    return sorted(sources, key=lambda one: one.key)


def make_key(relative: str) -> str:
    """Key of a file: its path without suffix. WebDataset ends a key at the first dot of the name, so dots go."""
    parts = [part for part in PurePosixPath(relative).parts if part not in ("/", ".", "..")]
    stem = PurePosixPath(parts[-1]).stem.replace(".", "_")
    return "/".join([*parts[:-1], stem])


def _from_folder(src: Path) -> list[Source]:
    files, others = _walk(src)
    if not files:
        raise DataError(f"no images in {src} ({others} other files); known suffixes: {', '.join(SUFFIXES)}")
    if others:
        logger.info("%s: %d files that are not images were ignored", src, others)
    tops = {path.parts[0] for path in files if len(path.parts) > 1}
    has_splits = bool(tops) and tops <= set(SPLIT_FOLDERS)
    loose = next((path for path in files if len(path.parts) == 1), None)
    if tops and loose is not None:
        raise UsageError(
            f"{src / loose} lies beside folders of images: move it into one of {_some(sorted(tops))}"
        )
    sources = []
    for path in files:
        split = path.parts[0] if has_splits else None
        inner = path.parts[1:] if has_splits else path.parts
        label = inner[0] if len(inner) > 1 else None
        sources.append(Source(src / path, make_key(path.as_posix()), label, split))
    return sources


def _walk(src: Path) -> tuple[list[Path], int]:
    """Relative paths of all images, and how many other files there are. Hidden files and folders don't count."""
    files, others = [], 0
    for folder, subfolders, names in os.walk(src, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                files.append((Path(folder) / name).relative_to(src))
            else:
                others += 1
    return files, others


def _from_csv(src: Path) -> list[Source]:
    try:
        with src.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            _check_columns(src, rows.fieldnames or ())
            sources = list(_read_rows(src, rows))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{src} is not a CSV in UTF-8 ({error}); give a folder of images or a CSV"
        ) from error
    if not sources:
        raise DataError(f"{src} lists no images: it has a header and no rows")
    return sources


def _read_rows(src: Path, rows: "csv.DictReader[str]") -> Iterator[Source]:
    for row in rows:
        path, label, split, key = ((row.get(column) or "").strip() for column in COLUMNS)
        if not path:
            raise DataError(f"{src}, line {rows.line_num}: `path` is empty")
        if split and not split.replace("-", "").replace("_", "").isalnum():
            raise DataError(f"{src}, line {rows.line_num}: split {split!r}: use letters, digits, - and _")
        yield Source(src.parent / path, make_key(key or path), label or None, split or None)


def _check_columns(src: Path, columns: Sequence[str]) -> None:
    """``path`` must be there, and no column may look like a misspelling of one that is used."""
    unknown = [column for column in columns if column not in COLUMNS]
    for wanted in COLUMNS:
        if wanted in columns:
            continue
        near = nearest(wanted, unknown)
        if near is not None:
            raise UsageError(
                f"{src}: no column `{wanted}`, but `{near}`: rename it; known columns: {', '.join(COLUMNS)}"
            )
        if wanted == "path":
            raise UsageError(
                f"{src}: no column `path`; it has: {', '.join(columns)}; known columns: {', '.join(COLUMNS)}"
            )


def _refuse_duplicates(sources: Sequence[Source]) -> None:
    seen: dict[str, Path] = {}
    for one in sources:
        if one.key in seen:
            raise DataError(
                f"duplicate key {one.key!r}: {seen[one.key]} and {one.path}; rename one of the files or list it once"
            )
        seen[one.key] = one.path


def _some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
