"""Write the shards of a pack, one after another, from where an earlier pack was broken off."""

import hashlib
import logging
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import NONE
from essa_dist.data.manifest import QUARANTINE_FILE
from essa_dist.data.quota import BadQuota
from essa_dist.errors import DataError
from essa_dist.packing.config import PackConfig
from essa_dist.packing.guards import Fingerprint, table_of
from essa_dist.packing.journal import Journal, LeftOut, Position, Record
from essa_dist.packing.layouts.found import legible
from essa_dist.packing.progress import PackProgress
from essa_dist.packing.samples import Made, Recipe, Refused
from essa_dist.packing.source import Source
from essa_dist.packing.workers import Item, Workers, in_process
from essa_dist.packing.writer import Sample, ShardWriter

logger = logging.getLogger(__name__)

SAID = 20
"""Lines about samples that are left out."""


class Task(NamedTuple):
    """All that the shards depend on, and ``workers``, on which they don't."""

    config: PackConfig
    base: Path
    """Folder from which quarantine.csv names the files."""
    sources: Sequence[Source]
    """In the order of storage."""
    missing: Sequence[LeftOut]
    """Files that were listed and aren't there."""
    classes: Mapping[str, int]
    several: bool
    """Whether a sample may have several classes."""
    patients: Mapping[str, int]
    recipe: Recipe
    workers: int


def write_shards(task: Task, journal: Journal) -> list[LeftOut]:
    """Pack what ``journal`` doesn't have yet; all that was left out, now and before.

    Raises DataError where more was left out than the quota allows.
    """
    start, done = journal.records[-1].position if journal.records else (0, 0)
    writer = ShardWriter(
        journal.set,
        max_bytes=task.config.shard_bytes,
        done=tuple(record.shard for record in journal.records),
    )
    quarantine = _Quarantine(task, journal)
    shard = _OpenShard()
    with PackProgress(len(task.sources), start) as progress:
        try:
            for position, source, item in _items(task, start, done):
                sample = _sample(source, item, task, journal.dropped)
                if isinstance(sample, Refused):
                    shard.left_out.append(quarantine.add(source, sample))
                    progress.left_out += 1
                elif isinstance(item, Made):
                    if writer.is_full(sample):
                        shard = _finish(writer, journal, shard)
                    writer.add(sample)
                    shard.add(item, position[0])
                    progress.images += 1
                    progress.bytes += len(item.encoded.image)
                shard.position = position
                progress.update(position[0])
            shard.position = (len(task.sources), 0)
            _finish(writer, journal, shard)
        except BaseException:
            writer.discard()
            raise
    return quarantine.left_out


class _OpenShard:
    """What is known of the samples since the last finished shard."""

    def __init__(self) -> None:
        self.position: Position = (0, 0)
        self.histogram: NDArray[np.int64] = np.zeros((3, 256), np.int64)
        self.left_out: list[LeftOut] = []
        self.flags: dict[str, list[int]] = {}
        self.files: list[int] = []
        self.fingerprints: list[Fingerprint] = []

    def add(self, made: Made, file: int) -> None:
        self.histogram += made.encoded.histogram
        for flag in made.flags:
            self.flags.setdefault(flag, []).append(len(self.files))
        self.files.append(file)
        self.fingerprints.append(made.fingerprint)


def _finish(writer: ShardWriter, journal: Journal, shard: _OpenShard) -> _OpenShard:
    """Close the open tar, if there is one, and remember it."""
    closed = writer.close()
    if closed is not None:
        finished, index = closed
        record = Record(
            shard=finished,
            position=shard.position,
            histogram=tuple(map(tuple, shard.histogram.tolist())),
            left_out=tuple(shard.left_out),
            flags={flag: tuple(rows) for flag, rows in shard.flags.items()},
            files=tuple(shard.files),
        )
        journal.add(record, index, table_of(shard.fingerprints))
    return _OpenShard()


class _Quarantine:
    """What was left out so far, and how much may be."""

    def __init__(self, task: Task, journal: Journal) -> None:
        self._task = task
        self._quota: BadQuota = task.config.quota
        before = [one for record in journal.records for one in record.left_out]
        self.left_out = [*task.missing, *before]
        self._bad = sum(not one.harmless for one in self.left_out)
        self._said = 0
        self._check()

    def add(self, source: Source, refused: Refused) -> LeftOut:
        self._say(f"{source.path}#{refused.part}" if refused.part else str(source.path), refused)
        one = LeftOut(
            path=_named(source, refused.part, self._task), reason=refused.reason, harmless=refused.harmless
        )
        self.left_out.append(one)
        self._bad += not refused.harmless
        self._check()
        return one

    def _say(self, where: str, refused: Refused) -> None:
        self._said += 1
        level = logging.INFO if refused.harmless else logging.WARNING
        if self._said <= SAID:
            logger.log(level, "left out %s: %s", where, refused.reason)
        elif self._said == SAID + 1:
            logger.log(level, "left out more; all are named in %s", QUARANTINE_FILE)

    def _check(self) -> None:
        total = len(self._task.sources) + len(self._task.missing)
        if self._bad > (allowed := self._quota.allowed(total)):
            bad = [one for one in self.left_out if not one.harmless]
            raise DataError(
                f"more than {allowed} of {total} files can't be read, first {first(bad)}; "
                "mend or remove them, or raise quota.count or quota.fraction"
            )


def first(left_out: Sequence[LeftOut], limit: int = 3) -> str:
    """The first few, for a message."""
    return ", ".join(f"{one.path} ({one.reason})" for one in left_out[:limit])


def _items(task: Task, start: int, done: int) -> Iterator[tuple[Position, Source, Item]]:
    """Samples and refusals from source ``start`` on, but for its first ``done``, each with the position after it."""
    if task.workers == 0:
        yield from _numbered(in_process(task.sources, task.recipe, start), task, start, done)
        return
    with Workers(min(task.workers, len(task.sources) - start), task.recipe) as workers:
        yield from _numbered(workers.run(task.sources, start), task, start, done)


def _numbered(
    items: Iterator[tuple[int, Item]], task: Task, start: int, done: int
) -> Iterator[tuple[Position, Source, Item]]:
    at, place = start, 0
    for number, item in items:
        at, place = number, place + 1 if number == at else 1
        if (number, place) > (start, done):
            yield (number, place), task.sources[number], item


def _sample(source: Source, made: Item, task: Task, dropped: Container[str]) -> Sample | Refused:
    if isinstance(made, Refused):
        return made
    key = key_of(source.key, task.config) + (f"_{made.part}" if made.part else "")
    if key in dropped:
        return Refused(made.part, "duplicate of an image in another split", harmless=True)
    return Sample(
        split=str(source.split),
        key=key,
        encoded=made.encoded,
        mask=made.mask,
        label=NONE if source.label is None else task.classes[source.label],
        # A set has one schema: where nothing is known of a sample, that is written for each class.
        labels=source.labels or ((NONE,) * len(task.classes) if task.several else None),
        patient=NONE if source.patient is None else task.patients[source.patient],
    )


def key_of(key: str, config: PackConfig) -> str:
    """The key as it is stored: see ``PackConfig.keys``."""
    if config.keys == "path":
        return key
    return hashlib.blake2b(f"{config.seed}/{key}".encode(), digest_size=10).hexdigest()


def _named(source: Source, part: str, task: Task) -> str:
    """How quarantine.csv names a sample: by its path, or by its key where paths aren't to be seen."""
    name = (
        os.path.relpath(source.path, task.base)
        if task.config.keys == "path"
        else key_of(source.key, task.config)
    )
    return legible(f"{name}#{part}" if part else name)
