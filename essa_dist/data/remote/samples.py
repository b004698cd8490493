"""The local copies of samples that processes of one machine share: bounded, safe against crashes and each other.

Files in the folder of a set: ``samples``, sparse, with a slot for each sample (see slots.py); ``table``, mapped, which says
what is there and when it is needed next; ``lock``, held for each change. A reader takes no lock: a slot that was freed or
damaged under its eyes fails its checksum, and counts as absent. A process killed at any point leaves at most a slot
written but not entered, which is written over.

What to keep. Of one machine that sees every sample once an epoch, no policy can find more in the cache than its share of
the set: at the end of an epoch the cache holds that share, and the next epoch asks for every sample once. Keeping what came
first reaches this bound and writes each sample once; least-recently-used stays far below. Where several machines share
the epochs, each sees some samples soon again and others late, and knowing the plan pays: what is needed latest goes first
(Belady, IBM Systems Journal 5, 1966). Both are had by one rule: the sample whose next use is furthest goes, one
with an unknown next use never drives out another.
"""

import ctypes
import errno
import fcntl
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from essa_dist.data.remote.slots import PAGE, TRAILER, Slot, Slots
from essa_dist.data.storage import Range

logger = logging.getLogger(__name__)

UNKNOWN = np.iinfo(np.int64).max
"""Next use of what may never be used again."""
USED, CUT = 0, 1
"""In the head of the table: pages that are taken; and how far off (in samples of the stream) the next use may be of
what still enters a full cache, found by the last round of evictions."""
FREED = 50
"""A round of evictions frees this part (1/50) of the cache, so that its scan of the table costs little a sample."""


class SampleCache:
    """At most ``bound`` bytes of a set's samples, in ``folder``. Safe to fork.

    Raises OSError where the disk has no room for the table (12 bytes a sample).
    """

    def __init__(self, folder: Path, slots: Slots, bound: int) -> None:
        self.folder, self.slots, self.bound = folder, slots, bound
        self.damaged = 0
        self._full_disk = False
        with self._locked():
            self._map()
            self._head[USED] = self._pages.sum(dtype=np.int64)  # exact, also after a crash
            if not self._head[CUT]:
                self._head[CUT] = UNKNOWN

    def __contains__(self, wanted: Range) -> bool:
        slot = self.slots.find(wanted)
        return slot is not None and bool(self._pages[slot.number])

    def get(self, wanted: Range) -> bytes | None:
        """The bytes; None where they aren't there."""
        slot = self.slots.find(wanted)
        if slot is None or not self._pages[slot.number]:
            return None
        data = self._read(slot, wanted.length)
        if data is None:
            with self._locked():  # freed meanwhile, or damaged
                if self._pages[slot.number] and self._read(slot, wanted.length) is None:
                    self.damaged += 1
                    self._forget(slot)
        return data

    def expect(self, wanted: Range, again: int) -> None:
        """Say when a sample that is there is needed next."""
        slot = self.slots.find(wanted)
        if slot is not None and self._pages[slot.number]:
            self._next[slot.number] = again

    def put(self, wanted: Range, data: bytes, now: int = 0, again: int = UNKNOWN) -> None:
        """Keep ``data``, used at ``now`` and next at ``again`` (positions of the sample stream), if that pays."""
        slot = self.slots.find(wanted)
        if slot is None or self._full_disk or slot.crc32 not in (None, zlib.crc32(data)):
            return
        with self._locked():
            if self._pages[slot.number] or not self._room(slot.pages, now, again):
                return
            try:
                written = os.pwrite(
                    self._file, data + zlib.crc32(data).to_bytes(TRAILER, "big"), slot.address
                )
                if written != len(data) + TRAILER:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._full_disk = True
                _punch(self._file, slot)
                logger.warning("%s: %s; no more samples are kept there", self.folder, error.strerror)
                return
            self._next[slot.number] = again
            self._pages[slot.number] = slot.pages
            self._head[USED] += slot.pages

    @property
    def used(self) -> int:
        """Bytes of disk."""
        return int(self._head[USED]) * PAGE

    def _room(self, pages: int, now: int, again: int) -> bool:
        """Whether ``pages`` more fit, after a round of evictions where that pays."""
        bound, used, cut = self.bound // PAGE, int(self._head[USED]), int(self._head[CUT])
        if again == UNKNOWN:
            return used + pages <= bound
        if used + pages <= bound - bound // FREED:
            return True
        if again - now >= cut:
            return False  # the next round would drive it out
        return used + pages <= bound or self._evict(used + pages - bound + bound // FREED, now)

    def _evict(self, pages: int, now: int) -> bool:
        """Free at least ``pages``, of the samples whose next use is furthest."""
        there = np.flatnonzero(self._pages)
        due = np.where(
            self._next[there] < now, UNKNOWN, self._next[there]
        )  # passed by: the plan of another run
        latest = np.argsort(due, kind="stable")[::-1]
        count = int(np.searchsorted(np.cumsum(self._pages[there[latest]]), pages)) + 1
        for number in there[latest[:count]].tolist():
            slot = self.slots.at(number)
            if not _punch(self._file, slot):
                self._head[CUT] = 0  # this disk can't free parts of a file: what came first stays
                return False
            self._forget(slot)
        cut = int(due[latest[:count]].min())
        self._head[CUT] = UNKNOWN if cut == UNKNOWN else cut - now
        return True

    def _forget(self, slot: Slot) -> None:
        self._head[USED] -= int(self._pages[slot.number])
        self._pages[slot.number] = 0

    def _read(self, slot: Slot, length: int) -> bytes | None:
        """What the slot holds, where its trailer and the index agree with it."""
        found = os.pread(self._file, length + TRAILER, slot.address)
        data, trailer = found[:length], int.from_bytes(found[length:], "big")
        whole = (
            len(found) == length + TRAILER and zlib.crc32(data) == trailer and slot.crc32 in (None, trailer)
        )
        return data if whole else None

    def _map(self) -> None:
        self._file = os.open(self.folder / "samples", os.O_RDWR | os.O_CREAT, 0o644)
        count, path = self.slots.count, self.folder / "table"
        size = PAGE + 12 * count
        table = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(table).st_size != size:
                os.posix_fallocate(
                    table, 0, size
                )  # writing to a mapped hole kills the process when the disk is full
        finally:
            os.close(table)
        self._head = np.memmap(path, np.int64, "r+", 0, (2,))
        self._next = np.memmap(path, np.int64, "r+", PAGE, (count,))
        self._pages = np.memmap(path, np.uint32, "r+", PAGE + 8 * count, (count,))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all threads and processes: each opening of the file is a lock of its own."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def _punch(file: int, slot: Slot) -> bool:
    """Give the pages of a slot back to the disk; False where it can't (fallocate(2): ext4, xfs, btrfs and tmpfs can)."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch_hole = 1, 2  # linux/falloc.h
    offset, length = ctypes.c_int64(slot.address), ctypes.c_int64(slot.pages * PAGE)
    return bool(libc.fallocate64(file, keep_size | punch_hole, offset, length) == 0)
