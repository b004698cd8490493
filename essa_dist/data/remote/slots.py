"""Where each sample of a set lies in its local cache: computed from the index, nothing is stored for it."""

from typing import NamedTuple

import numpy as np

from essa_dist.data.index import Index
from essa_dist.data.manifest import Manifest
from essa_dist.data.storage import Range

PAGE = 4096
"""Slots are whole pages, so that freeing one frees disk."""
TRAILER = 4
"""Bytes behind the data: their CRC-32. A slot proves its own contents."""


class Slot(NamedTuple):
    number: int
    """0 .. ``Slots.count`` - 1."""
    address: int
    """Of its first byte in the cache file."""
    pages: int
    crc32: int | None
    """What the index says; None: it says nothing (masks)."""


class Slots:
    """A slot for each image, and for each mask where the set has masks.

    An image with ``offset`` in its tar, the k-th of its shard, has the address roundup(offset) + 2 k pages after its
    shard's first. Its data, the trailer and the rounding take less than two pages more than the bytes up to the next
    image, so slots never overlap; what lies between them is a hole of a sparse file and takes no disk.
    """

    def __init__(self, manifest: Manifest, index: Index) -> None:
        self._index = index
        self._kinds = 2 if manifest.mask_classes else 1
        counts = np.array([shard.count for shard in manifest.shards], dtype=np.int64)
        sizes = np.array([shard.bytes for shard in manifest.shards], dtype=np.int64)
        self._rows = np.concatenate([[0], np.cumsum(counts)])
        self._region = -(-sizes // PAGE) * PAGE + 2 * PAGE * (counts + 1)
        self._base = np.concatenate([[0], np.cumsum(self._kinds * self._region)])
        self.count = int(self._kinds * self._rows[-1])
        self.bytes = int(self._base[-1])
        """Of the cache file, holes included."""

    def find(self, wanted: Range) -> Slot | None:
        """The slot of a sample's image or mask; None for any other bytes."""
        start, stop = int(self._rows[wanted.shard]), int(self._rows[wanted.shard + 1])
        offsets = self._index.offset[start:stop]  # ascending: the order of the tar
        k = int(np.searchsorted(offsets, wanted.offset))
        if k < len(offsets) and (offsets[k], self._index.length[start + k]) == wanted[1:]:
            return self._slot(wanted, k, 0)
        if self._kinds == 2:
            for k in np.flatnonzero(self._index.mask_offset[start:stop] == wanted.offset).tolist():
                if self._index.mask_length[start + k] == wanted.length:
                    return self._slot(wanted, k, 1)
        return None

    def at(self, number: int) -> Slot:
        """The slot of a number."""
        shard = int(np.searchsorted(self._kinds * self._rows, number, side="right")) - 1
        start, stop = int(self._rows[shard]), int(self._rows[shard + 1])
        kind, k = divmod(number - self._kinds * start, stop - start)
        index, row = self._index, start + k
        columns = (index.mask_offset, index.mask_length) if kind else (index.offset, index.length)
        return self._slot(Range(shard, int(columns[0][row]), int(columns[1][row])), k, kind)

    def _slot(self, wanted: Range, k: int, kind: int) -> Slot:
        start, stop = int(self._rows[wanted.shard]), int(self._rows[wanted.shard + 1])
        region = int(self._base[wanted.shard]) + kind * int(self._region[wanted.shard])
        return Slot(
            number=self._kinds * start + kind * (stop - start) + k,
            address=region + _roundup(wanted.offset) + 2 * PAGE * k,
            pages=-(-(wanted.length + TRAILER) // PAGE),
            crc32=None if kind else int(self._index.crc32[start + k]),
        )


def _roundup(size: int) -> int:
    return -(-size // PAGE) * PAGE
