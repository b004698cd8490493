"""What a worker does: one rank's batch of one step, a function of the request and of nothing else."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from essa_dist.data.augment import make_crops
from essa_dist.data.batch import Batch
from essa_dist.data.masks import MaskConfig, draw_masks
from essa_dist.data.pixels import Bounds
from essa_dist.data.plan import sample_seed
from essa_dist.data.shards import PackedImages, UndecodableImage
from essa_dist.data.storage import Uses
from essa_dist.data.views import CropConfig, draw_window
from essa_dist.errors import DataError

Sample = TypeVar("Sample")
Item = TypeVar("Item")


class Request(NamedTuple):
    step: int
    positions: Sequence[int]  # of this rank's samples in the stream
    indices: Sequence[int]  # of the same samples in the data set
    ahead: Sequence[int] = ()  # samples that the same worker reads soon, in that order
    uses: Uses | None = None  # when this machine needs the samples again, for a cache


class Failed(NamedTuple):
    """Instead of a batch. As data, because an exception in a worker arrives as a page of traceback."""

    reason: str
    bad: tuple[str, ...]
    why: tuple[str, ...] = ()


class Origin(NamedTuple):
    """What is known of a batch besides its pixels."""

    request: Request
    indices: tuple[int, ...]  # of the samples in it: those of the request, or what took their places
    keys: tuple[str, ...]
    bad: tuple[str, ...]  # shard:key of the broken ones met
    why: tuple[str, ...]  # of each of them
    masks: Tensor  # [2, B, N] bool; empty where nothing is hidden


NO_MASKS = torch.empty(0)


class SampleBatches(Dataset[Item | Failed], Generic[Sample, Item]):
    """Answers a request with its batch: read, and replace what is broken. Subclasses say what is made of a sample."""

    def __init__(
        self,
        images: PackedImages,
        *,
        seed: int,
        allowed: int,
        window_jitter: float = 0,
        among: Sequence[int] | None = None,
    ) -> None:
        self.images, self.seed, self.allowed = images, seed, allowed
        self.window_jitter = window_jitter
        self.among: Sequence[int] = range(len(images)) if among is None else among
        """Ascending numbers of the samples that are asked for, and that may take the place of a broken one."""

    def prepare(self, i: int, encoded: bytes | None, seed: int) -> Sample:
        """What a batch needs of sample ``i``; its bytes, where they were read. Raises UndecodableImage where it is broken."""
        raise NotImplementedError

    def together(self, samples: list[Sample], origin: Origin) -> Item:
        """The batch of these samples."""
        raise NotImplementedError

    def masks_of(self, step: int) -> Tensor:
        """What is hidden of the batch of a step: nothing."""
        return NO_MASKS

    def __getitem__(self, request: Request) -> Item | Failed:
        bad: dict[str, str] = {}
        try:
            with one_thread():
                return self._batch(request, bad)
        except DataError as error:
            return Failed(str(error), tuple(bad), tuple(bad.values()))

    def bounds(self, i: int, seed: int) -> Bounds:
        """The stored values of sample ``i`` shown black and white, jittered where that is asked for and it has 16 bits."""
        bounds = self.images.bounds(i)
        if self.window_jitter and self.images.index.bits[i] == 16:
            return draw_window(bounds, self.window_jitter, seed)
        return bounds

    def _batch(self, request: Request, bad: dict[str, str]) -> Item:
        encoded = self.images.read_undecoded(request.indices, request.uses)
        self.images.ahead(request.ahead)
        indices, samples = [], []
        for position, index, data in zip(request.positions, request.indices, encoded, strict=True):
            i, sample = self._usable(index, data, sample_seed(self.seed, position), bad)
            indices.append(i)
            samples.append(sample)
        keys = tuple(self.images.keys[i] for i in indices)
        masks = self.masks_of(request.step)
        return self.together(
            samples, Origin(request, tuple(indices), keys, tuple(bad), tuple(bad.values()), masks)
        )

    def _usable(
        self, index: int, encoded: bytes | None, seed: int, bad: dict[str, str]
    ) -> tuple[int, Sample]:
        """The sample, or the next one that can be decoded; why the broken ones are not goes to ``bad``."""
        tries = min(len(self.among), self.allowed + 1)  # one more than allowed is enough to end the run
        place = bisect_left(self.among, index)
        for attempt in range(tries):
            i = int(self.among[(place + attempt) % len(self.among)])
            try:
                return i, self.prepare(i, None if attempt else encoded, seed)
            except UndecodableImage as error:
                where = self.images.where(i)
                bad[where] = str(error).removeprefix(f"{where}: ")
        raise DataError(
            f"{tries} samples in a row can't be decoded, the last is {where} ({bad[where]}): pack the data again"
        )


class RankBatches(SampleBatches[Sample, Item]):
    """One rank's batches of crops: :class:`SampleBatches` with the masks of their patches."""

    def __init__(
        self,
        images: PackedImages,
        crops: CropConfig,
        masks: MaskConfig,
        *,
        seed: int,
        global_batch: int,
        mine: slice,
        patch_size: int,
        allowed: int,
        window_jitter: float = 0,
    ) -> None:
        super().__init__(images, seed=seed, allowed=allowed, window_jitter=window_jitter)
        self.crops, self.masks = crops, masks
        self.global_batch, self.mine = global_batch, mine
        self.grid = (crops.global_size // patch_size,) * 2

    def masks_of(self, step: int) -> Tensor:
        """[2, B, N] bool."""
        return rank_masks(
            self.masks,
            seed=self.seed,
            step=step,
            global_batch=self.global_batch,
            mine=self.mine,
            grid=self.grid,
        )


class CropBatches(RankBatches[tuple[Tensor, Tensor], Batch]):
    """The batches of ``data.decoder=torchvision``: decoded and cropped in the worker."""

    def prepare(self, i: int, encoded: bytes | None, seed: int) -> tuple[Tensor, Tensor]:
        """The global and the local crops of sample ``i``."""
        image = self.images.decode(i, encoded=encoded, bounds=self.bounds(i, seed))
        return make_crops(image, self.crops, seed)

    def together(self, samples: list[tuple[Tensor, Tensor]], origin: Origin) -> Batch:
        """See :class:`RankBatches`."""
        return Batch(
            global_crops=torch.stack([globals_ for globals_, _ in samples], dim=1),
            local_crops=torch.stack([locals_ for _, locals_ in samples], dim=1),
            masks=origin.masks,
            keys=origin.keys,
            step=origin.request.step,
            bad=origin.bad,
            why=origin.why,
        )


def rank_masks(
    config: MaskConfig, *, seed: int, step: int, global_batch: int, mine: slice, grid: tuple[int, int]
) -> Tensor:
    """One rank's masks of a step, [2, B, N] bool. Crop number = view * G + place in the global batch."""
    places = range(global_batch)[mine]
    select = [view * global_batch + place for view in range(2) for place in places]
    masks = draw_masks(config, seed=seed, step=step, crops=2 * global_batch, select=select, grid=grid)
    return torch.from_numpy(masks).view(2, len(places), -1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums split over threads differ in their last bit: crops must not depend on where they are made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
