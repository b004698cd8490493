"""Decoded images that the processes of a machine share: trials of a sweep, ranks, data workers, this run and the next.

One sparse file for each split of a set, with a slot for each image, in the order of the index. Who decodes an image first
writes its stored values there, before any window, so that every setting does with them what it does without. Nobody
takes a lock, and there is no table: all write the same bytes, and a slot proves its own contents by its head, which
holds the CRC-32 of the encoded image (the index knows it) and that of the values. What doesn't prove itself counts as
absent: a hole, a slot half written when a process was killed or the power failed, a file that was damaged or truncated.

What is read stays in the kernel's page cache, once for all processes, and is memory that the kernel can take back. Read
by ``pread``, not mapped: a truncated file or a broken disk is an error then, where a mapping ends its reader by SIGBUS.
"""

import errno
import hashlib
import logging
import os
import struct
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import Index
from essa_dist.data.pixels import Stored

logger = logging.getLogger(__name__)

MARK = b"esP1"
"""Begins every slot, and is part of the file's name: another number for another layout, or another way to decode."""
HEAD = struct.Struct("<4sII")
"""The mark, CRC-32 of the encoded image, CRC-32 of the stored values, which follow."""
SUFFIX = ".pixels"
EDGES = 2 * 4096
"""Bytes of disk that a slot may take beyond its own, in the blocks where it begins and ends."""
GIB = 2**30


class DecodedImages:
    """The file of one split at ``path``. Safe to fork, to pickle, and for threads to share.

    ``budget``: bytes that all such files of its folder may take together; what comes later isn't kept. Raises OSError
    where the file can't be made; one that can only be read is read.
    """

    def __init__(self, path: Path, budget: int) -> None:
        self.path, self.budget = path, budget
        self._starts: NDArray[np.int64] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writes = True
        """Whether images are added: not after an error, nor to a file that can only be read."""
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            self._file, self.writes = os.open(path, os.O_RDONLY), False

    def has(self, index: Index, i: int) -> bool:
        """Whether sample ``i`` seems to be there; its values may still turn out to be damaged."""
        return self._crc32(index, i) is not None

    def get(self, index: Index, i: int) -> Stored | None:
        """The stored values of sample ``i``, [H, W] where it is grey, else [H, W, 3]; None where they aren't there."""
        crc32 = self._crc32(index, i)
        if crc32 is None:
            return None
        pixels: Stored = np.empty(_shape(index, i), _type(index, i))
        try:
            found = os.preadv(self._file, [pixels.data], self._start(index, i) + HEAD.size)
        except OSError:  # a broken disk: the image itself may still be read
            return None
        return pixels if found == pixels.nbytes and zlib.crc32(pixels.data) == crc32 else None

    def put(self, index: Index, i: int, pixels: Stored) -> None:
        """Keep what ``read_stored`` gave of sample ``i``, if the budget and the disk have room. Never raises OSError."""
        kept = _as_kept(index, i, pixels)
        if kept is None or not self.writes or self.get(index, i) is not None:
            return
        head = HEAD.pack(MARK, int(index.crc32[i]), zlib.crc32(kept.data))
        try:
            if used(self.path.parent) + HEAD.size + kept.nbytes + EDGES > self.budget:
                return
            written = os.pwritev(self._file, [head, kept.data], self._start(index, i))
            if written != HEAD.size + kept.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.writes = False
            logger.warning("%s: %s; no more decoded images are kept there", self.path, error.strerror)

    def bytes(self, index: Index) -> int:
        """Of the file when every image is in it."""
        return self._start(index, len(index))

    def _crc32(self, index: Index, i: int) -> int | None:
        """Of the stored values, by a head that is that of sample ``i``."""
        try:
            head = os.pread(self._file, HEAD.size, self._start(index, i))
        except OSError:
            return None
        if len(head) != HEAD.size:
            return None
        mark, encoded, crc32 = HEAD.unpack(head)
        return int(crc32) if (mark, encoded) == (MARK, int(index.crc32[i])) else None

    def _start(self, index: Index, i: int) -> int:
        """Of a slot. The sums take 8 bytes a sample; workers that are forked share them."""
        if self._starts is None:
            sizes = index.height.astype(np.int64) * index.width * index.channels * (index.bits // 8)
            self._starts = np.concatenate([[0], np.cumsum(sizes + HEAD.size)])
        return int(self._starts[i])

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.path, self.budget)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def open_decoded(folder: Path, index: Index, gib: float) -> DecodedImages | None:
    """The decoded images of the split that ``index`` tells of; None, with a warning, where ``folder`` can't be used."""
    path = folder / f"{_identity(index)}{SUFFIX}"
    found = _open(path, int(gib * GIB))
    if found is None:
        return None
    taken, wanted = used(folder, but=path), found.bytes(index)
    if not found.writes:
        logger.warning("%s can only be read: what it lacks is decoded each time", path)
    elif taken + wanted > found.budget:
        logger.warning(
            "data.decoded=%s: %.3g GiB of decoded images don't fit into data.decoded_gb=%g beside %.3g GiB of other sets: "
            "the rest is decoded each time; raise it, or delete files there that no run uses",
            folder,
            wanted / GIB,
            gib,
            taken / GIB,
        )
    return found


def _open(path: Path, budget: int) -> DecodedImages | None:
    try:
        return DecodedImages(path, budget)
    except OSError as error:
        logger.warning("data.decoded=%s: %s; images are decoded each time", path.parent, error.strerror)
        return None


def used(folder: Path, but: Path | None = None) -> int:
    """Bytes of disk that decoded images take in ``folder``, holes not counted; those in the file ``but`` left out."""
    with os.scandir(folder) as entries:
        return sum(
            entry.stat().st_blocks * 512
            for entry in entries
            if entry.name.endswith(SUFFIX) and (but is None or entry.name != but.name)
        )


def _identity(index: Index) -> str:
    """Of the images and of who decodes them: packed elsewhere or otherwise they share a file, with another decoder not."""
    decoders = " ".join(f"{name} {version(name)}" for name in ("pillow", "imagecodecs"))
    digest = hashlib.sha256(MARK + decoders.encode())
    for column in (index.crc32, index.length, index.height, index.width, index.channels, index.bits):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()[:24]


def _shape(index: Index, i: int) -> tuple[int, ...]:
    size = int(index.height[i]), int(index.width[i])
    return size if index.channels[i] == 1 else (*size, 3)


def _type(index: Index, i: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if index.bits[i] == 8 else np.uint16)


def _as_kept(index: Index, i: int, pixels: Stored) -> Stored | None:
    """Grey as one channel; None for what isn't what the index says, which a reader couldn't restore."""
    if index.channels[i] == 1 and pixels.ndim == 3:
        grey = pixels[:, :, 0]
        if not (pixels == grey[:, :, None]).all():
            return None
        pixels = grey
    fits = pixels.shape == _shape(index, i) and pixels.dtype == _type(index, i)
    return pixels.copy() if fits else None
