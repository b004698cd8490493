"""Where shards lie: byte ranges of tars, from a local folder. Remote ones are in ``data/remote``."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from essa_dist.data.manifest import Shard
from essa_dist.errors import DataError

OPEN_TARS = 128
"""File descriptors held at once: sets of thousands of shards must fit the usual limit of 1024."""


class Range(NamedTuple):
    """Bytes of one shard."""

    shard: int  # position in manifest.shards
    offset: int
    length: int


class Uses(NamedTuple):
    """When the samples of a read are used, as positions in the stream of the sample plan."""

    now: int
    again: Sequence[int]  # of each sample: its next use on this machine


class Storage(Protocol):
    """Random access to the bytes of the shards. Cheap to pickle and safe to fork: what is open stays behind."""

    def read(self, ranges: Sequence[Range], uses: Uses | None = None) -> list[bytes]:
        """The bytes of ``ranges``, in order. Raises DataError, naming the shard, where they can't be had.

        ``uses`` tell a storage with a cache what to keep.
        """
        ...

    def ahead(self, ranges: Sequence[Range]) -> None:
        """Say what will be read next, in that order; returns at once. Storage without latency ignores it.

        Each call stands for all that is to come: what an earlier one announced and this one doesn't is dropped.
        """
        ...


class LocalShards:
    """Shards as files: one ``pread`` for each range."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder, self.shards = folder, shards
        self._tars: OrderedDict[int, int] = OrderedDict()  # shard number -> file descriptor, oldest first

    def read(self, ranges: Sequence[Range], uses: Uses | None = None) -> list[bytes]:
        """See :class:`Storage`."""
        return [self._read(one) for one in ranges]

    def ahead(self, ranges: Sequence[Range]) -> None:
        """Nothing to do: the kernel reads ahead."""

    def _read(self, wanted: Range) -> bytes:
        shard = self.shards[wanted.shard]
        try:
            found = os.pread(self._tar(wanted.shard), wanted.length, wanted.offset)
        except OSError as error:
            raise DataError(
                f"{self.folder / shard.file} can't be read: {error.strerror}; check the disk"
            ) from error
        if len(found) != wanted.length:
            check_shard(self.folder, shard)
            raise DataError(
                f"{self.folder / shard.file}: expected {wanted.length} bytes at {wanted.offset}, found {len(found)}: "
                "pack the data again"
            )
        return found

    def _tar(self, number: int) -> int:
        if number in self._tars:
            self._tars.move_to_end(number)
            return self._tars[number]
        shard = self.shards[number]
        try:
            descriptor = os.open(self.folder / shard.file, os.O_RDONLY)
        except OSError as error:
            raise DataError(damaged(self.folder, shard, error.strerror or "unreadable")) from error
        if len(self._tars) >= OPEN_TARS:
            os.close(self._tars.popitem(last=False)[1])
        self._tars[number] = descriptor
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_tars", {}).values():
            os.close(descriptor)


def check_shard(folder: Path, shard: Shard) -> None:
    """DataError unless the tar has the size that the manifest gives."""
    try:
        found = (folder / shard.file).stat().st_size
    except OSError as error:
        raise DataError(damaged(folder, shard, "no such file")) from error
    if found != shard.bytes:
        raise DataError(damaged(folder, shard, f"found {found} bytes"))


def damaged(folder: Path, shard: Shard, found: str) -> str:
    """The message about a tar that isn't what the manifest says."""
    return (
        f"shard {folder / shard.file} is damaged: expected {shard.bytes} bytes, {found}; "
        "copy it again or pack the data again"
    )
