"""Write WebDataset tars and their index: identical input gives identical bytes."""

import hashlib
import io
import tarfile
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from essa_dist.data.index import Index
from essa_dist.data.manifest import UNLABELLED, Shard


class Sample(NamedTuple):
    """One sample as it is stored: members ``key.suffix`` and, for a label >= 0, ``key.cls``."""

    split: str
    key: str
    suffix: str  # jpg, png or webp
    image: bytes
    label: int  # -1 = none


class ShardWriter:
    """Appends samples, split after split, to ``<split>-000000.tar``, ``<split>-000001.tar``, ... in ``folder``.

    A tar is closed before it would grow beyond ``max_bytes`` (a single larger sample has a tar of its own).
    Memory: about 200 bytes a sample, for the index.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], *, max_bytes: int) -> None:
        self.folder, self.classes, self.max_bytes = folder, classes, max_bytes
        self.shards: list[Shard] = []
        self.counts: dict[str, dict[str, int]] = {}
        self._rows: list[tuple[int, int, int, int, bytes]] = []
        self._tar: tarfile.TarFile | None = None
        self._split = ""
        self._in_tar = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        if kind is None:
            self._close()
        elif self._tar is not None:
            self._tar.close()

    def add(self, sample: Sample) -> None:
        """Append one sample."""
        if self._tar is None or self._full(sample):
            self._close()
            self._start(sample.split)
        assert self._tar is not None
        name = f"{sample.key}.{sample.suffix}"
        self._append(name, sample.image)
        end = self._tar.offset  # just past the image, which is padded to whole blocks
        offset = end - -(-len(sample.image) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if sample.label >= 0:
            self._append(f"{sample.key}.cls", str(sample.label).encode())
        self._rows.append((len(self.shards), offset, len(sample.image), sample.label, sample.key.encode()))
        self._in_tar += 1
        of_split = self.counts.setdefault(sample.split, Counter())
        of_split[self.classes[sample.label] if sample.label >= 0 else UNLABELLED] += 1

    def index(self) -> Index:
        """The index of all samples added so far."""
        shard, offset, length, label, key = zip(*self._rows, strict=True)
        return Index(
            np.array(shard, np.int32),
            np.array(offset, np.int64),
            np.array(length, np.int64),
            np.array(label, np.int64),
            np.array(key, np.bytes_),
        )

    def _full(self, sample: Sample) -> bool:
        assert self._tar is not None
        headers = 3 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE  # two members and the end of the tar
        return sample.split != self._split or self._tar.offset + len(sample.image) + headers > self.max_bytes

    def _start(self, split: str) -> None:
        number = sum(shard.split == split for shard in self.shards)
        self._split, self._in_tar = split, 0
        path = self.folder / f"{split}-{number:06d}.tar"
        self._tar = tarfile.TarFile(path, "w", format=tarfile.GNU_FORMAT)

    def _append(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(name)  # owner 0, time 0: nothing of this machine or moment
        member.size, member.mode = len(content), 0o644
        self._tar.addfile(member, io.BytesIO(content))

    def _close(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        path = Path(str(self._tar.name))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.shards.append(
            Shard(
                file=path.name,
                split=self._split,
                count=self._in_tar,
                bytes=path.stat().st_size,
                sha256=digest,
            )
        )
        self._tar = None
