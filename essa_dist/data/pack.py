"""``essa pack``: write a folder of images as WebDataset tars with a manifest and an index."""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from essa_dist.data.encode import Stored, encode, strict_pillow
from essa_dist.data.manifest import MANIFEST_FILE, Manifest
from essa_dist.data.quota import BadQuota
from essa_dist.data.sources import Source, find_sources
from essa_dist.data.splits import assign_splits, class_names
from essa_dist.data.writer import Sample, ShardWriter
from essa_dist.errors import DataError, UsageError
from essa_dist.settings import Config

logger = logging.getLogger(__name__)

CHUNK = 256
"""Images in memory at once."""

RGB = tuple[float, float, float]


class PackConfig(Config):
    """What to pack and how. Needs `src` and `out`."""

    src: str
    """A folder of images: class subfolders, or `train`, `val`, `test`, `unlabelled` with class subfolders or images
    inside, or images alone. Or a CSV with a column `path` (from the CSV's folder) and any of `label`, `split`, `key`."""
    out: str
    """Folder to write; it must not exist, or see `overwrite`."""
    name: str | None = None
    """Name of the data set; none: the name of `out`."""
    source: str = ""
    """Where the images come from, for the manifest."""
    licence: str = ""
    """Licence of the images, for the manifest."""
    attribution: str = ""
    """Whom to name, for the manifest."""
    image_size: int | None = Field(default=None, ge=8)
    """Pixels: an image whose short side is longer is reduced to this, its aspect kept; none: never."""
    quality: int | None = Field(default=None, ge=1, le=100)
    """Every image is stored as JPEG of this quality; none: JPEG, PNG and WebP files that need no change are stored
    byte for byte, other formats as PNG, reduced JPEG files at 95."""
    splits: dict[str, float] = Field(default={})
    """Fractions into which images without a split of their own are divided, at random within each class, e.g.
    `{train: 0.8, test: 0.2}`; the sum is 1. Empty: `train` where there are labels, else `unlabelled`."""
    seed: int = 0
    """Of the division into splits and of the order in which samples are stored."""
    shard_bytes: int = Field(default=256_000_000, ge=20_000)
    """Largest tar."""
    quota: BadQuota = BadQuota()
    """How many files may be unreadable; they are left out and named in the manifest."""
    workers: int = Field(default=2, ge=1)
    """Threads that decode."""
    overwrite: bool = False
    """Replace `out` where it is a packed data set."""

    @field_validator("splits")
    @classmethod
    def _whole(cls, splits: dict[str, float]) -> dict[str, float]:
        if splits and (min(splits.values()) <= 0 or abs(sum(splits.values()) - 1) > 1e-6):
            raise ValueError(
                f"fractions must be positive and sum to 1, got a sum of {sum(splits.values()):g}"
            )
        return splits


def pack(config: PackConfig) -> dict[str, Any]:
    """Pack ``config.src`` into ``config.out``, which is complete or absent, and say what was written.

    Raises UsageError for a wrong path or CSV, DataError for no images, duplicate keys or too many bad files.
    """
    out = Path(config.out)
    _check_out(out, config.overwrite)
    sources = assign_splits(find_sources(Path(config.src)), config.splits, config.seed)
    logger.info(
        "%s: %d images, splits %s", config.src, len(sources), dict(Counter(one.split for one in sources))
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        beside.mkdir()
        manifest = _write(beside, sources, config)
        _move_into_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return {
        "out": str(out),
        "name": manifest.name,
        "samples": sum(shard.count for shard in manifest.shards),
        "counts": manifest.counts,
        "shards": len(manifest.shards),
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "skipped": manifest.skipped,
        "mean": list(manifest.mean),
        "std": list(manifest.std),
    }


def _write(folder: Path, sources: Sequence[Source], config: PackConfig) -> Manifest:
    """Write tars, index and manifest into ``folder``, which exists and is empty."""
    classes = class_names({one.label for one in sources if one.label is not None})
    number = {name: i for i, name in enumerate(classes)}
    pixels = np.zeros((3, 256), dtype=np.int64)
    skipped: dict[Path, str] = {}
    with ShardWriter(folder, classes, max_bytes=config.shard_bytes) as writer:
        for source, result in _encoded(sources, config):
            if isinstance(result, str):
                _skip(skipped, source.path, result, config.quota, len(sources))
                continue
            pixels += result.histogram
            label = -1 if source.label is None else number[source.label]
            writer.add(Sample(str(source.split), source.key, result.suffix, result.data, label))
    if not writer.shards:
        raise DataError(
            f"none of the {len(sources)} images of {config.src} can be read; the first: {_first(skipped)}"
        )
    writer.index().write(folder)
    mean, std = _statistics(pixels)
    src = Path(config.src)
    base = src if src.is_dir() else src.parent
    manifest = Manifest(
        name=config.name or Path(config.out).name,
        classes=classes,
        splits=tuple(writer.counts),
        shards=tuple(writer.shards),
        counts={split: dict(sorted(counts.items())) for split, counts in writer.counts.items()},
        mean=mean,
        std=std,
        source=config.source,
        licence=config.licence,
        attribution=config.attribution,
        skipped=dict(sorted(Counter(skipped.values()).items())),
        skipped_files={os.path.relpath(path, base): reason for path, reason in sorted(skipped.items())},
    )
    manifest.write(folder)
    return manifest


def _encoded(sources: Sequence[Source], config: PackConfig) -> Iterator[tuple[Source, Stored | str]]:
    """Each source with its encoded image, or with the reason why there is none, in order."""

    def work(source: Source) -> Stored | str:
        try:
            return encode(source.path.read_bytes(), image_size=config.image_size, quality=config.quality)
        except FileNotFoundError:
            return "no such file"
        except Exception as error:  # a broken file makes Pillow raise almost anything
            return _reason(error)

    with strict_pillow(), ThreadPoolExecutor(config.workers) as pool:
        for start in range(0, len(sources), CHUNK):
            chunk = sources[start : start + CHUNK]
            yield from zip(chunk, pool.map(work, chunk), strict=True)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # Pillow names the buffer, which differs every time; identical input must give identical manifests.
    return "not an image" if "cannot identify image file" in text else text or type(error).__name__


def _skip(skipped: dict[Path, str], path: Path, reason: str, quota: BadQuota, total: int) -> None:
    skipped[path] = reason
    logger.warning("left out %s: %s", path, reason)
    allowed = quota.allowed(total)
    if len(skipped) > allowed:
        raise DataError(
            f"more than {allowed} of {total} files can't be read, first {_first(skipped)}; "
            "mend or remove them, or raise quota.count or quota.fraction"
        )


def _first(skipped: dict[Path, str], limit: int = 3) -> str:
    return ", ".join(f"{path} ({reason})" for path, reason in list(skipped.items())[:limit])


def _statistics(pixels: NDArray[np.int64]) -> tuple[RGB, RGB]:
    """Mean and standard deviation per channel of a histogram [3, 256], on the scale 0..1."""
    share = pixels / pixels.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return _rounded(mean), _rounded(std)


def _rounded(values: NDArray[np.float64]) -> RGB:
    red, green, blue = (round(float(value), 5) for value in values)
    return red, green, blue


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise UsageError(f"{out} exists already: choose another `out` or set overwrite=true")
    if not (out / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{out} is not a packed data set, so overwrite=true won't replace it: choose another `out`"
        )


def _move_into_place(folder: Path, out: Path) -> None:
    """Rename ``folder`` to ``out``, a packed data set that is already there being removed after it has made way."""
    old = out.parent / f".{out.name}.replaced-{os.getpid()}"
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)
