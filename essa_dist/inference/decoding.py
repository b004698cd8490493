"""Pictures in the order of their items, read and prepared by threads ahead of their use."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from essa_dist.errors import EssaError
from essa_dist.inference.interface import Images, LeftOut, Picture
from essa_dist.packing.samples import quiet

Prepared = TypeVar("Prepared")

CHUNK = 16
"""Pictures of one item that are read at once: a volume or a slide must not fill the memory."""


class Ready(NamedTuple, Generic[Prepared]):
    """A picture, prepared."""

    key: str
    name: str
    value: Prepared


class Chunk(NamedTuple, Generic[Prepared]):
    """Some pictures of one item; the next chunk is of the same item or of the next one."""

    part: int
    item: int
    found: list[Ready[Prepared] | LeftOut]


def read_ahead(
    images: Images,
    items: Iterable[tuple[int, int]],
    prepare: Callable[[Tensor], Prepared],
    *,
    workers: int,
    ahead: int,
) -> Generator[Chunk[Prepared], None, None]:
    """At least one chunk for each of ``items`` (part, item), in their order, which the threads do not change.

    At most ``ahead`` items are under way, with CHUNK pictures each. ``prepare``: pixels [3, H, W] to what is kept; where
    it raises ValueError the picture is left out. Raises what ``images.pictures`` does.
    """
    coming, todo = (
        deque[
            tuple[int, int, Iterator[Ready[Prepared] | LeftOut], Future[list[Ready[Prepared] | LeftOut]]]
        ](),
        iter(items),
    )
    pool = ThreadPoolExecutor(workers)
    try:
        with quiet():
            while True:
                for part, item in islice(todo, ahead - len(coming)):
                    pictures = _prepared(images.pictures(item), prepare)
                    coming.append((part, item, pictures, pool.submit(_some, pictures)))
                if not coming:
                    return
                part, item, pictures, future = coming.popleft()
                found = future.result()
                if len(found) == CHUNK:  # there may be more
                    coming.appendleft((part, item, pictures, pool.submit(_some, pictures)))
                yield Chunk(part, item, found)
    finally:
        pool.shutdown(cancel_futures=True)


def _some(pictures: Iterator[Ready[Prepared] | LeftOut]) -> list[Ready[Prepared] | LeftOut]:
    return list(islice(pictures, CHUNK))


def _prepared(
    pictures: Iterator[Picture | LeftOut], prepare: Callable[[Tensor], Prepared]
) -> Iterator[Ready[Prepared] | LeftOut]:
    for one in pictures:
        if isinstance(one, LeftOut):
            yield one
            continue
        try:
            ready = Ready(one.key, one.name, prepare(one.pixels))
        except EssaError:
            raise
        except (ValueError, RuntimeError) as error:
            yield LeftOut(one.key, " ".join(str(error).split()))
        else:
            yield ready
