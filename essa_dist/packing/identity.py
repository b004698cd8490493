"""What a packed set depends on, as hashes: a pack that was broken off goes on only where all are the same."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from essa_dist import __version__
from essa_dist.packing.config import PackConfig
from essa_dist.packing.journal import digest
from essa_dist.packing.layouts import Found
from essa_dist.packing.source import Source

WITHOUT_EFFECT = {
    *("src", "out", "name", "source", "licence", "attribution"),
    *("quota", "workers", "overwrite", "guards", "report"),
}
"""Settings that the shards don't depend on."""
PACKAGES = ("numpy", "pillow", "imagecodecs", "pydicom", "nibabel", "tifffile", "tiffslide")
"""Whose versions may change what is stored."""


def identity(config: PackConfig, found: Found, sources: Sequence[Source]) -> dict[str, str]:
    """A hash for each thing; its name is for the user."""
    classes = found.classes, found.mask_classes, found.label_kind
    return {
        "the settings": digest([config.model_dump_json(exclude=WITHOUT_EFFECT)]),
        "the files": digest([classes, *((one, _state(one.path), _state(one.mask)) for one in sources)]),
        "essa or a package it reads images with": digest([__version__, *map(_version, PACKAGES)]),
    }


def input_bytes(sources: Sequence[Source], enough: int) -> int:
    """Size of the files, counted until there are ``enough``."""
    total = 0
    for one in sources:
        total += (_state(one.path) or (0, 0))[0]
        if total >= enough:
            break
    return total


def _state(path: Path | None) -> tuple[int, int] | None:
    """Size and time of the last change, in nanoseconds; None: there is no such file."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_size, found.st_mtime_ns)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
