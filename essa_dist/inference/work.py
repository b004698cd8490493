"""Images in parts and batches: what embedding and predicting have in common.

A part is a range of items. No batch goes beyond its part, so that a part is the same whatever was made before it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from essa_dist.data.quota import BadQuota
from essa_dist.inference.decoding import Chunk, Ready, read_ahead
from essa_dist.inference.folder import check_quota
from essa_dist.inference.interface import Images, LeftOut
from essa_dist.progress import Progress

Prepared = TypeVar("Prepared")


class One(NamedTuple, Generic[Prepared]):
    """A picture of an item."""

    item: int
    key: str
    name: str
    value: Prepared


class Work(Generic[Prepared]):
    """The pictures of the parts that this process makes."""

    def __init__(
        self,
        images: Images,
        prepare: Callable[[Tensor], Prepared],
        *,
        part_items: int,
        batch_size: int,
        workers: int,
        quota: BadQuota,
        processes: int = 1,
    ) -> None:
        """``processes``: how many share the work, for the rate that is shown."""
        self._images, self._prepare, self._quota = images, prepare, quota
        self._part_items, self._batch_size, self._workers = part_items, batch_size, workers
        self._processes = processes
        self.items_total = len(images)
        self.count = -(-len(images) // part_items)
        """Of all parts."""
        self._left: list[LeftOut] = []
        self.pictures = 0
        """That this process has made."""

    def parts(
        self, numbers: Iterable[int], todo: int
    ) -> "Iterator[tuple[int, Iterator[list[One[Prepared]]]]]":
        """Each part with its batches, to be taken one after the other. ``todo``: parts of all processes.

        Raises what ``read_ahead`` does, DataError where more is unreadable than the quota allows.
        """
        reading = read_ahead(
            self._images,
            ((part, item) for part in numbers for item in self.items(part)),
            self._prepare,
            workers=self._workers,
            ahead=2 * self._batch_size,
        )
        total = min(todo * self._part_items, len(self._images))
        with closing(reading), Progress(total, 1) as progress:
            self._progress, self._items = progress, 0
            for part, chunks in groupby(reading, key=lambda chunk: chunk.part):
                yield part, self._batches(chunks)

    def items(self, part: int) -> range:
        """Of a part."""
        return range(part * self._part_items, min((part + 1) * self._part_items, len(self._images)))

    def left_out(self) -> list[LeftOut]:
        """What was left out since the last call."""
        left, self._left = self._left, []
        return left

    def _batches(self, chunks: Iterable[Chunk[Prepared]]) -> Iterator[list[One[Prepared]]]:
        batch: list[One[Prepared]] = []
        last = -1
        for chunk in chunks:
            for found in chunk.found:
                if isinstance(found, Ready):
                    batch.append(One(chunk.item, *found))
                else:
                    self._left.append(found)
                    check_quota(self._left, self._quota, len(self._images))
                if len(batch) == self._batch_size:
                    yield self._made(batch)
                    batch = []
            self._items += chunk.item != last
            last = chunk.item
            self._progress.update(self._items * self._processes, {})
        if batch:
            yield self._made(batch)

    def _made(self, batch: list[One[Prepared]]) -> list[One[Prepared]]:
        self.pictures += len(batch)
        return batch
