"""Packed sets written by hand: any bytes, any bits, any window."""

import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from essa_dist.data.index import NONE, Index
from essa_dist.data.manifest import Manifest, Shard
from essa_dist.data.shards import PackedImages, open_packed

Stored = tuple[bytes, int, int]
"""Encoded image, height, width."""
WriteSet = Callable[..., PackedImages]


def write(folder: Path, stored: list[Stored], **columns: list[float]) -> PackedImages:
    """One shard of these images. ``columns``: of the index, other than those of plain 8-bit RGB."""
    folder.mkdir(parents=True)
    offsets, tar_path = [], folder / "train-000000.tar"
    with tarfile.open(tar_path, "w") as tar:
        for i, (data, _, _) in enumerate(stored):
            offsets.append(tar.offset + 512)
            member = tarfile.TarInfo(f"{i:04d}.img")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    n = len(stored)

    def column(name: str, default: float, dtype: type) -> np.ndarray:
        return np.asarray(columns.get(name, [default] * n), dtype=dtype)

    Index(
        shard=np.zeros(n, np.int32),
        offset=np.asarray(offsets, np.int64),
        length=np.asarray([len(data) for data, _, _ in stored], np.int64),
        crc32=np.asarray([zlib.crc32(data) for data, _, _ in stored], np.uint32),
        height=np.asarray([height for _, height, _ in stored], np.int32),
        width=np.asarray([width for _, _, width in stored], np.int32),
        channels=column("channels", 3, np.uint8),
        bits=column("bits", 8, np.uint8),
        low=column("low", 0, np.float32),
        high=column("high", 255, np.float32),
        slope=column("slope", 1, np.float32),
        intercept=column("intercept", 0, np.float32),
        label=np.full(n, NONE, np.int32),
        patient=np.full(n, NONE, np.int32),
        mask_offset=np.full(n, NONE, np.int64),
        mask_length=np.zeros(n, np.int64),
        key=[f"{i:04d}" for i in range(n)],
    ).write(folder)
    Manifest(
        name="test",
        label_kind="none",
        classes=(),
        splits=("train",),
        shards=(
            Shard(file=tar_path.name, split="train", count=n, bytes=tar_path.stat().st_size, sha256="0"),
        ),
        counts={},
        samples={"train": n},
        bits={"8": n},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        source="",
        licence="",
        attribution="",
        skipped={},
    ).write(folder)
    return open_packed(str(folder))


@pytest.fixture
def write_set(tmp_path: Path) -> WriteSet:
    """``write_set(stored, bits=[16, 8])`` writes a packed set and opens it."""
    return lambda stored, **columns: write(tmp_path / "written", stored, **columns)
