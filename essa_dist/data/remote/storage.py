"""Shards in remote storage, read through a local cache and ahead of their use."""

import asyncio
import contextlib
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from essa_dist.data.index import read_index
from essa_dist.data.manifest import read_manifest
from essa_dist.data.remote.config import CacheConfig
from essa_dist.data.remote.fetcher import Fetcher, Stats
from essa_dist.data.remote.keeping import Hold, open_cache
from essa_dist.data.remote.samples import UNKNOWN
from essa_dist.data.remote.slots import Slots
from essa_dist.data.remote.transport import Facts
from essa_dist.data.remote.urls import join, shown
from essa_dist.data.storage import Range, Uses
from essa_dist.errors import DataError

GAP = 32 * 1024
"""Ranges nearer than this are fetched by one request: a round trip costs more than the bytes between them."""
LONGEST = 8 * 2**20
"""Bytes of such a request."""

Flight = Future[dict[Range, bytes]]


class RemoteShards:
    """The shards of the set whose manifest and index are in ``folder``; their names there start from ``base``.

    What is read is kept in ``folder`` too, up to ``bound`` bytes.
    """

    def __init__(self, base: str, folder: Path, config: CacheConfig, bound: int) -> None:
        self.base, self.folder, self.config, self.bound = base, folder, config, bound
        manifest = read_manifest(folder)
        self.shards = manifest.shards
        self._slots = Slots(manifest, read_index(folder))
        self._cache = open_cache(folder, self._slots, bound)
        self._hold = Hold(folder)
        self._process: _Process | None = None

    def read(self, ranges: Sequence[Range], uses: Uses | None = None) -> list[bytes]:
        """See :class:`~essa_dist.data.storage.Storage`. What is on its way is waited for, not fetched again."""
        process = self._here()
        flights = process.take(ranges)
        found: dict[Range, bytes] = {}
        for one in ranges:
            kept = self._cache.get(one) if self._cache and one not in flights else None
            if kept is not None:
                found[one] = kept
        flights |= self._launch(process, [one for one in ranges if one not in flights and one not in found])
        fetched = {one: flight.result()[one] for one, flight in flights.items()}
        process.fetcher.stats.hits += len(found)
        process.fetcher.stats.misses += len(fetched)
        self._keep(ranges, found, fetched, uses)
        found |= fetched
        return [found[one] for one in ranges]

    def ahead(self, ranges: Sequence[Range]) -> None:
        """See :class:`~essa_dist.data.storage.Storage`. What would exceed ``ahead_bytes`` is left to ``read``."""
        process = self._here()
        wanted = [one for one in process.admit(ranges) if not (self._cache and one in self._cache)]
        process.announce(self._launch(process, wanted))

    def check(self, split: str) -> None:
        """DataError unless every tar of a split is there, in the size that the manifest gives."""
        addresses = {join(self.base, shard.file): shard for shard in self.shards if shard.split == split}
        with Fetcher(
            self.config
        ) as fetcher:  # not this process's own: no thread is left when workers are forked
            facts = fetcher.run(_look(fetcher, list(addresses)))
        for (address, shard), found in zip(addresses.items(), facts, strict=True):
            if found.size not in (None, shard.bytes):
                raise DataError(
                    f"shard {shown(address)} is damaged: expected {shard.bytes} bytes, found {found.size}; "
                    "copy it again or pack the data again"
                )

    def stats(self) -> Stats:
        """Counts of this process since its first read."""
        return self._here().fetcher.stats

    def _launch(self, process: "_Process", ranges: Sequence[Range]) -> dict[Range, Flight]:
        flights: dict[Range, Flight] = {}
        for group in coalesce(ranges):
            flight = process.fetcher.start(self._bring(process.fetcher, group))
            flights |= dict.fromkeys(group, flight)
        return flights

    async def _bring(self, fetcher: Fetcher, group: Sequence[Range]) -> dict[Range, bytes]:
        """The bytes of neighbours in one shard, by one request. What doesn't match its checksum is fetched once more."""
        url = join(self.base, self.shards[group[0].shard].file)
        start = group[0].offset
        whole = await fetcher.get(url, start, max(one.offset + one.length for one in group) - start)
        brought = {one: whole[one.offset - start : one.offset - start + one.length] for one in group}
        for one, data in brought.items():
            slot = self._slots.find(one)
            if slot is not None and slot.crc32 not in (None, zlib.crc32(data)):
                fetcher.stats.damaged += 1
                brought[one] = await fetcher.get(
                    url, one.offset, one.length
                )  # still wrong: the reader will say so
        return brought

    def _keep(
        self, ranges: Sequence[Range], found: Iterable[Range], fetched: dict[Range, bytes], uses: Uses | None
    ) -> None:
        if self._cache is None:
            return
        now = 0 if uses is None else uses.now
        again = [UNKNOWN] * len(ranges) if uses is None else uses.again
        for one, next_use in zip(ranges, again, strict=True):
            if one in fetched:
                self._cache.put(one, fetched[one], now, next_use)
            elif uses is not None:
                self._cache.expect(one, next_use)

    def _here(self) -> "_Process":
        if self._process is None or self._process.pid != os.getpid():
            self._process = _Process(self.config)
        return self._process

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteShards, (self.base, self.folder, self.config, self.bound)


class _Process:
    """What one process has under way. Threads, connections and locks don't survive a fork: each process makes its own."""

    def __init__(self, config: CacheConfig) -> None:
        self.pid = os.getpid()
        self.fetcher = Fetcher(config)
        self._budget = config.ahead_bytes
        self._lock = threading.Lock()
        self._announced: dict[Range, Flight] = {}

    def admit(self, ranges: Sequence[Range]) -> list[Range]:
        """Those of ``ranges`` that aren't under way, as far as the budget goes. Others that were announced are dropped."""
        with self._lock:
            self._announced = {one: self._announced[one] for one in ranges if one in self._announced}
            free = self._budget
            admitted = []
            for one in dict.fromkeys(ranges):
                free -= one.length
                if free < 0:
                    break
                if one not in self._announced:
                    admitted.append(one)
            return admitted

    def announce(self, flights: dict[Range, Flight]) -> None:
        """What :meth:`admit` gave is under way."""
        with self._lock:
            self._announced |= flights

    def take(self, ranges: Sequence[Range]) -> dict[Range, Flight]:
        """Those of ``ranges`` that were announced."""
        with self._lock:
            return {one: self._announced.pop(one) for one in set(ranges) if one in self._announced}


def coalesce(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Groups of neighbours, each for one request."""
    group: list[Range] = []
    stop = 0  # of the group
    for one in sorted(set(ranges)):
        end = one.offset + one.length
        near = bool(group) and one.shard == group[0].shard and one.offset - stop <= GAP
        if near and max(stop, end) - group[0].offset <= LONGEST:
            group.append(one)
            stop = max(stop, end)
        else:
            if group:
                yield group
            group, stop = [one], end
    if group:
        yield group


async def _look(fetcher: Fetcher, addresses: Sequence[str]) -> list[Facts]:
    for folder in {address.rpartition("/")[0] for address in addresses}:
        with contextlib.suppress(DataError):  # listing may be forbidden where reading isn't
            await fetcher.list_folder(folder)
    return await asyncio.gather(*(fetcher.facts(address) for address in addresses))
