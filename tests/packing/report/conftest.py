"""Packed sets written by hand: tars, index and manifest, with numbers that a test can find again on the page."""

import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from essa_dist.data.index import NONE, Index
from essa_dist.data.manifest import UNLABELLED, Manifest, Shard

WritePacked = Callable[..., Path]


@dataclass
class One:
    """A sample to be: pixels, class, patient, window."""

    key: str
    split: str = "train"
    pixels: Any = None
    label: int = NONE
    labels: tuple[int, ...] | None = None
    patient: int = NONE
    mask: Any = None
    window: tuple[float, float] | None = None
    slope: float = 1.0
    intercept: float = 0.0


def scene(seed: int, height: int = 34, width: int = 45) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def png(pixels: np.ndarray) -> bytes:
    if pixels.dtype == np.uint16:
        return bytes(imagecodecs.png_encode(pixels))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write_packed(tmp_path: Path) -> WritePacked:
    """``write_packed(samples, **manifest)`` writes a set with one tar a split; samples of a split stand together."""

    def write(samples: Sequence[One], name: str = "set", **more: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        splits = tuple(dict.fromkeys(one.split for one in samples))
        rows: list[dict[str, Any]] = []
        shards = []
        for number, split in enumerate(splits):
            members = [one for one in samples if one.split == split]
            rows += _write_tar(folder / f"{split}.tar", members, number)
            size = (folder / f"{split}.tar").stat().st_size
            shards.append(
                Shard(file=f"{split}.tar", split=split, count=len(members), bytes=size, sha256="0" * 64)
            )
        _index(samples, rows).write(folder)
        fields = _counts(samples, splits, more.get("classes", ())) | {
            "name": name, "label_kind": "none", "classes": (), "splits": splits, "shards": tuple(shards),
            "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "source": "a hospital", "licence": "CC0",
            "attribution": "", "skipped": {},
        }  # fmt: skip
        Manifest(**fields | more).write(folder)
        return folder

    return write


def _write_tar(path: Path, members: Sequence[One], shard: int) -> list[dict[str, Any]]:
    rows = []
    with tarfile.TarFile(path, "w") as tar:
        for one in members:
            if one.pixels is None:
                one.pixels = scene(zlib.crc32(one.key.encode()))
            row: dict[str, Any] = {"shard": shard, "mask_offset": NONE, "mask_length": 0}
            for suffix, content in (("png", png(one.pixels)), ("mask.png", one.mask)):
                if content is None:
                    continue
                data = content if suffix == "png" else png(content)
                info = tarfile.TarInfo(f"{one.key}.{suffix}")
                info.size = len(data)
                place = tar.offset + 512
                tar.addfile(info, io.BytesIO(data))
                if suffix == "png":
                    row |= {"offset": place, "length": len(data), "crc32": zlib.crc32(data)}
                else:
                    row |= {"mask_offset": place, "mask_length": len(data)}
            rows.append(row)
    return rows


def _index(samples: Sequence[One], rows: Sequence[dict[str, Any]]) -> Index:
    def column(values: Sequence[Any], kind: type) -> Any:
        return np.array(values, kind)

    bits = [16 if one.pixels.dtype == np.uint16 else 8 for one in samples]
    windows = [one.window or (0, 255) for one in samples]
    labels = [one.labels for one in samples]
    return Index(
        shard=column([row["shard"] for row in rows], np.int32),
        offset=column([row["offset"] for row in rows], np.int64),
        length=column([row["length"] for row in rows], np.int64),
        crc32=column([row["crc32"] for row in rows], np.uint32),
        height=column([one.pixels.shape[0] for one in samples], np.int32),
        width=column([one.pixels.shape[1] for one in samples], np.int32),
        channels=column([1 if one.pixels.ndim == 2 else 3 for one in samples], np.uint8),
        bits=column(bits, np.uint8),
        low=column([low for low, _ in windows], np.float32),
        high=column([high for _, high in windows], np.float32),
        slope=column([one.slope for one in samples], np.float32),
        intercept=column([one.intercept for one in samples], np.float32),
        label=column([one.label for one in samples], np.int32),
        patient=column([one.patient for one in samples], np.int32),
        mask_offset=column([row["mask_offset"] for row in rows], np.int64),
        mask_length=column([row["mask_length"] for row in rows], np.int64),
        key=[one.key for one in samples],
        labels=None if labels[0] is None else column(labels, np.int8),
    )


def _counts(samples: Sequence[One], splits: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for one in samples:
        if one.labels is not None:
            counts[one.split].update(classes[i] for i, value in enumerate(one.labels) if value == 1)
        else:
            counts[one.split][UNLABELLED if one.label == NONE else classes[one.label]] += 1
    known = [one for one in samples if one.patient != NONE]
    return {
        "counts": {split: dict(count) for split, count in counts.items()},
        "samples": {split: sum(one.split == split for one in samples) for split in splits},
        "patients": {s: len({one.patient for one in known if one.split == s}) for s in splits}
        if known
        else {},
        "bits": Counter("16" if one.pixels.dtype == np.uint16 else "8" for one in samples),
    }


@pytest.fixture
def one() -> type[One]:
    """``one("key", "test", label=0)`` is a sample to write."""
    return One
