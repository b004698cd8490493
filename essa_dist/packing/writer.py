"""Write WebDataset tars and their index: identical input gives identical bytes."""

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from essa_dist.data.index import NONE, Index
from essa_dist.data.manifest import Shard
from essa_dist.packing.encode import Encoded

DTYPES: dict[str, type[np.generic]] = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "crc32": np.uint32,
    "height": np.int32,
    "width": np.int32,
    "channels": np.uint8,
    "bits": np.uint8,
    "low": np.float32,
    "high": np.float32,
    "slope": np.float32,
    "intercept": np.float32,
    "label": np.int32,
    "patient": np.int32,
    "mask_offset": np.int64,
    "mask_length": np.int64,
}
"""Of the numeric columns of :class:`Index`."""


class Sample(NamedTuple):
    """One sample and what the set says of it.

    Its members: ``key.jpg`` (or ``.png``, ``.webp``); ``key.mask.png`` where it has a mask; ``key.cls``, a number,
    where it has one class; ``key.json`` where there is more to say, with any of ``about``, ``slope``, ``intercept``,
    ``window`` (real values shown black and white) and ``labels`` (a list of 0, 1 and -1 over the classes of a
    multi-label set). WebDataset's own decoders read all of them.
    """

    split: str
    key: str
    encoded: Encoded
    mask: bytes | None = None
    label: int = NONE
    labels: tuple[int, ...] | None = None
    patient: int = NONE

    def members(self) -> list[tuple[str, bytes]]:
        """Name and content of each member, the image first."""
        members = [(f"{self.key}.{self.encoded.suffix}", self.encoded.image)]
        if self.mask is not None:
            members.append((f"{self.key}.mask.png", self.mask))
        if self.label != NONE:
            members.append((f"{self.key}.cls", str(self.label).encode()))
        about = self.encoded.about if self.labels is None else {**self.encoded.about, "labels": self.labels}
        if about:
            members.append((f"{self.key}.json", json.dumps(about, ensure_ascii=False).encode()))
        return members


class ShardWriter:
    """Appends samples, split after split, to ``<split>-000000.tar``, ``<split>-000001.tar``, ... in ``folder``.

    A tar is to be closed before it would grow beyond ``max_bytes`` (a single larger sample has a tar of its own).
    ``done``: shards that are there already. Memory: about 600 bytes for each sample of the open tar.
    """

    def __init__(self, folder: Path, *, max_bytes: int, done: tuple[Shard, ...] = ()) -> None:
        self.folder, self.max_bytes, self.shards = folder, max_bytes, list(done)
        self._tar: tarfile.TarFile | None = None
        self._split = ""
        self._rows: list[dict[str, Any]] = []

    def is_full(self, sample: Sample) -> bool:
        """Whether the open tar must be closed before ``sample`` is added."""
        if self._tar is None:
            return False
        blocks = sum(_blocks(content) + _headers(name) for name, content in sample.members())
        end = self._tar.offset + blocks * tarfile.BLOCKSIZE + tarfile.RECORDSIZE
        return sample.split != self._split or end > self.max_bytes

    def add(self, sample: Sample) -> None:
        """Append one sample, to a new tar where none is open."""
        if self._tar is None:
            self._start(sample.split)
        places = {name: self._append(name, content) for name, content in sample.members()}
        one = sample.encoded
        self._rows.append(
            {
                "shard": len(self.shards),
                "offset": places[f"{sample.key}.{one.suffix}"],
                "length": len(one.image),
                "crc32": zlib.crc32(one.image),
                "height": one.height,
                "width": one.width,
                "channels": one.channels,
                "bits": one.bits,
                "low": one.bounds.low,
                "high": one.bounds.high,
                "slope": one.slope,
                "intercept": one.intercept,
                "label": sample.label,
                "patient": sample.patient,
                "mask_offset": places.get(f"{sample.key}.mask.png", NONE),
                "mask_length": NONE if sample.mask is None else len(sample.mask),
                "key": sample.key,
                "labels": sample.labels,
            }
        )

    def close(self) -> tuple[Shard, Index] | None:
        """Finish the open tar: what the manifest and the index say of it; None where none is open."""
        if self._tar is None:
            return None
        path = Path(str(self._tar.name))
        self._tar.close()
        self._tar = None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        shard = Shard(file=path.name, split=self._split, count=len(self._rows), bytes=size, sha256=digest)
        self.shards.append(shard)
        rows, self._rows = self._rows, []
        return shard, _index(rows)

    def discard(self) -> None:
        """Remove the open tar, which isn't finished."""
        if self._tar is not None:
            path, tar, self._tar = Path(str(self._tar.name)), self._tar, None
            tar.fileobj.close()  # not tar.close(), which would write
            path.unlink(missing_ok=True)

    def _start(self, split: str) -> None:
        number = sum(shard.split == split for shard in self.shards)
        self._split = split
        path = self.folder / f"{split}-{number:06d}.tar"
        self._tar = tarfile.TarFile(path, "w", format=tarfile.GNU_FORMAT)

    def _append(self, name: str, content: bytes) -> int:
        """Write one member; the offset of its first byte."""
        assert self._tar is not None
        member = tarfile.TarInfo(name)  # owner 0, time 0: nothing of this machine or moment
        member.size, member.mode = len(content), 0o644
        self._tar.addfile(member, io.BytesIO(content))
        return self._tar.offset - _blocks(content) * tarfile.BLOCKSIZE


def _blocks(content: bytes) -> int:
    return -(-len(content) // tarfile.BLOCKSIZE)


def _headers(name: str) -> int:
    """Blocks before the content of a member: a name of more than 100 bytes takes a member of its own in GNU's format."""
    encoded = name.encode()
    return 1 if len(encoded) <= tarfile.LENGTH_NAME else 2 + _blocks(encoded + b"\0")


def _index(rows: list[dict[str, Any]]) -> Index:
    columns: dict[str, Any] = {
        name: np.array([row[name] for row in rows], dtype) for name, dtype in DTYPES.items()
    }
    if rows[0]["labels"] is not None:
        columns["labels"] = np.array([row["labels"] for row in rows], np.int8)
    return Index(key=[row["key"] for row in rows], **columns)
