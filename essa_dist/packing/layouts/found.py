"""What a layout finds, and the few rules that all layouts share: keys, class names, provenance."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.source import Source

LabelKind = Literal["none", "single", "multi"]


class Provenance(NamedTuple):
    """Stands in the manifest where the user says nothing else."""

    source: str = ""
    licence: str = ""
    attribution: str = ""


NOTHING_KNOWN = Provenance()


@dataclass(frozen=True)
class Found:
    """The files of a data set and what its layout says of them."""

    sources: list[Source]
    """In the order of their keys, which are all different."""
    classes: tuple[str, ...] = ()
    label_kind: LabelKind = "none"
    mask_classes: tuple[str, ...] = ()
    layout: str = ""
    defaults: Provenance = NOTHING_KNOWN
    notes: tuple[str, ...] = ()
    """What the user ought to hear, a sentence each."""
    missing: tuple[tuple[Path, str], ...] = ()
    """Listed files that aren't there, and why they are left out."""


@dataclass(frozen=True)
class Layout:
    """One way in which data sets lie on disk."""

    detect: Callable[[Path], bool]
    """Whether a file or folder lies so. Looks at a few names, and at the first line of a table."""
    find: Callable[[Path, LayoutConfig], Found]
    settings: frozenset[str] = frozenset()
    """Fields of LayoutConfig that mean something to it, beside those that do to all."""


def make_key(relative: str) -> str:
    """Key of a file: its path without suffix. WebDataset ends a key at the first dot of the name, so dots go.

    Only the suffix of an image goes: names of DICOM files may be UIDs, ``1.2.840.113``, of which all parts count.
    """
    parts = [part for part in PurePosixPath(legible(relative)).parts if part not in ("/", ".", "..")]
    return "/".join([*parts[:-1], stem(parts[-1]).replace(".", "_")])


def legible(name: str) -> str:
    """The name of a file as text that can be written: bytes that are not UTF-8 as ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def stem(name: str) -> str:
    """The name of a file without the suffix of an image."""
    end = _ending().search(name)
    return name[: end.start()] if end and end.start() else name


@cache
def _ending() -> re.Pattern[str]:
    from essa_dist.packing.readers import SUFFIXES

    longest_first = sorted(SUFFIXES, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})$", re.IGNORECASE)


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted; numbers by value, so that 10 comes after 9."""
    names = set(names)
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def single_label(sources: Sequence[Source]) -> tuple[tuple[str, ...], LabelKind]:
    """Classes and kind of labels of sources with one class each, or none."""
    classes = class_names(one.label for one in sources if one.label is not None)
    return classes, "single" if classes else "none"


def some(names: Sequence[object], limit: int = 8) -> str:
    """``a, b, c and 5 more``."""
    listed = ", ".join(str(name) for name in names[:limit])
    return listed + (f" and {len(names) - limit} more" if len(names) > limit else "")
