"""``data.order=stream``: foreign tars without an index, drawn at random with replacement and read from start to end.

Every worker of every rank draws from all tars, by WebDataset's own resampling, and mixes the samples of several in a
buffer. So no rank can run out, however uneven the tars are; but a sample of a small tar is seen more often than one of
a large tar, and the order depends on the ranks and workers.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import Field

from essa_dist.data.plan import stable_seed
from essa_dist.data.shard_urls import list_shards, open_shard
from essa_dist.data.tars import BrokenTar, Member, walk
from essa_dist.errors import DataError
from essa_dist.settings import Config

logger = logging.getLogger(__name__)

ABOUT = "json"
"""Suffix of the member that may tell the window of a 16-bit image."""


class StreamConfig(Config):
    """How tars without an index are read, for `data.order=stream`."""

    epoch: int = Field(default=100_000, ge=1)
    """Samples that schedules count as one epoch; without an index nobody knows how many there are."""
    shuffle: int = Field(default=1000, ge=1)
    """Samples that each worker holds, still encoded, to draw the next one from; 1: the order of the tars."""
    image: tuple[str, ...] = Field(default=("jpg", "jpeg", "png", "webp"), min_length=1)
    """Suffixes of the image of a sample; what it is, its content says."""
    ignore: tuple[str, ...] = ()
    """Suffixes of members to pass over in silence, e.g. `[pyd]`: a pickle beside an image is refused otherwise."""
    allow_pipe: bool = False
    """Run the commands of `pipe:` URLs. Only for URLs of your own: they can do whatever you can."""


class Encoded(NamedTuple):
    """One sample as it lies in its tar."""

    where: str  # shard:key
    key: str
    image: bytes
    about: bytes | None


class Bad(NamedTuple):
    """A sample, or a whole tar, that can't be used."""

    where: str  # shard:key, or shard
    reason: str


@dataclass(frozen=True)
class TarStream:
    """Tars to be drawn from. Cheap to pickle."""

    shards: tuple[str, ...]
    """Paths and URLs."""
    config: StreamConfig
    window: tuple[float, float] | None = None
    """Real values shown black and white; None: each image's own, from its json."""

    def __len__(self) -> int:
        return self.config.epoch


def open_stream(
    src: str, config: StreamConfig | None = None, window: tuple[float, float] | None = None
) -> TarStream:
    """The tars of a folder, pattern, brace expression or URL. Nothing is read yet.

    Raises UsageError for a URL that runs a command, DataError where there are no tars.
    """
    config = config or StreamConfig()
    return TarStream(tuple(list_shards(src, allow_pipe=config.allow_pipe)), config, window)


def draw(stream: TarStream, seed: int, refuse: Callable[[Bad], None]) -> Generator[Encoded, None, None]:
    """Samples without end, a function of ``stream`` and ``seed``. What can't be used goes to ``refuse``, which may raise.

    Raises DataError where none of the tars holds a usable sample.
    """
    import webdataset

    tars = webdataset.ResampledShards(
        list(stream.shards), seed=seed, worker_seed=lambda: 0, deterministic=True
    )
    samples = _of_all(stream, (tar["url"] for tar in tars), refuse)
    yield from webdataset.filters.shuffle(stream.config.shuffle, seed=stable_seed("shuffle", seed))(samples)


def read_tar(shard: str, config: StreamConfig) -> Iterator[Encoded | Bad]:
    """The samples of one tar, in order, members of one key that follow each other being one sample."""

    def wanted(suffix: str) -> bool:
        return suffix in config.image or suffix == ABOUT

    members: list[Member] = []
    try:
        with open_shard(shard) as file:
            for member in walk(file, wanted, config.ignore):
                if members and members[0].key != member.key:
                    yield from _sample(shard, members)
                    members = []
                members.append(member)
        yield from _sample(shard, members)
    except BrokenTar as error:
        yield from _sample(shard, members)
        yield Bad(shard, str(error))
    except Exception as error:  # storage of any kind
        told = error.strerror if isinstance(error, OSError) else None
        yield Bad(shard, f"can't be read: {told or ' '.join(str(error).split()) or type(error).__name__}")


def _sample(shard: str, members: list[Member]) -> Iterator[Encoded | Bad]:
    """What members of one key make: one sample, or nothing where there is no image among them."""
    images = [member for member in members if not member.refused and member.suffix != ABOUT]
    about = next((member.data for member in members if member.suffix == ABOUT), None)
    refused = next((member.refused for member in members if member.refused), "")
    where = f"{shard}:{members[0].key}" if members else shard
    if refused:
        yield Bad(where, refused)
    elif len(images) > 1:
        names = ", ".join(dict.fromkeys(image.suffix for image in images))
        yield Bad(
            where,
            "duplicate key" if len({image.suffix for image in images}) == 1 else f"several images ({names})",
        )
    elif images:
        yield Encoded(where, images[0].key, images[0].data, about)


def _of_all(
    stream: TarStream, shards: Iterator[str], refuse: Callable[[Bad], None]
) -> Generator[Encoded, None, None]:
    barren: set[str] = set()  # tars that gave nothing when they were read last
    for shard in shards:
        useful = broken = False
        for sample in read_tar(shard, stream.config):
            if isinstance(sample, Encoded):
                useful = True
                yield sample
            else:
                broken = True
                refuse(sample)
        if useful:
            barren.discard(shard)
            continue
        if not broken:
            refuse(Bad(shard, "holds no images"))
        barren.add(shard)
        if len(barren) == len(stream.shards):
            raise DataError(
                f"none of the {len(barren)} tars of the stream holds a usable image, e.g. {shard}; look at them with "
                "essa pack index"
            )
