"""What a worker does: one rank's batch of one step, a function of the request and of nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from essa_dist.data.augment import CropConfig, make_crops
from essa_dist.data.batch import Batch
from essa_dist.data.masks import MaskConfig, draw_masks
from essa_dist.data.plan import sample_seed
from essa_dist.data.shards import PackedImages, UndecodableImage
from essa_dist.errors import DataError


class Request(NamedTuple):
    step: int
    positions: Sequence[int]  # of this rank's samples in the stream
    indices: Sequence[int]  # of the same samples in the data set


class Failed(NamedTuple):
    """Instead of a batch. As data, because an exception in a worker arrives as a page of traceback."""

    reason: str
    bad: tuple[str, ...]


class RankBatches(Dataset[Batch | Failed]):
    """Answers a request with its batch: decode, crop, mask."""

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
    ) -> None:
        self.images, self.crops, self.masks = images, crops, masks
        self.seed, self.allowed = seed, allowed
        self.global_batch, self.mine = global_batch, mine
        self.grid = (crops.global_size // patch_size,) * 2

    def __getitem__(self, request: Request) -> Batch | Failed:
        bad: list[str] = []
        try:
            with _one_thread():
                return self._batch(request, bad)
        except DataError as error:
            return Failed(str(error), tuple(bad))

    def _batch(self, request: Request, bad: list[str]) -> Batch:
        views, keys = [], []
        for position, index in zip(request.positions, request.indices, strict=True):
            image, key = self._decode(index, bad)
            views.append(make_crops(image, self.crops, sample_seed(self.seed, position)))
            keys.append(key)
        return Batch(
            global_crops=torch.stack([globals_ for globals_, _ in views], dim=1),
            local_crops=torch.stack([locals_ for _, locals_ in views], dim=1),
            masks=self._draw(request.step),
            keys=tuple(keys),
            step=request.step,
            bad=tuple(bad),
        )

    def _decode(self, index: int, bad: list[str]) -> tuple[Tensor, str]:
        """The sample, or the next one that can be decoded; the broken ones are appended to ``bad``."""
        tries = min(len(self.images), self.allowed + 1)  # one more than allowed is enough to end the run
        for i in range(index, index + tries):
            place = i % len(self.images)
            try:
                return self.images.decode(place), self.images.keys[place]
            except UndecodableImage:
                bad.append(self.images.where(place))
        raise DataError(
            f"{tries} samples in a row can't be decoded, the last is {bad[-1]}: pack the data again"
        )

    def _draw(self, step: int) -> Tensor:
        """[2, B, N] bool. Crop number = view * G + place in the global batch."""
        places = range(self.global_batch)[self.mine]
        select = [view * self.global_batch + place for view in range(2) for place in places]
        masks = draw_masks(
            self.masks,
            seed=self.seed,
            step=step,
            crops=2 * self.global_batch,
            select=select,
            grid=self.grid,
        )
        return torch.from_numpy(masks).view(2, len(places), -1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums split over threads differ in their last bit: crops must not depend on where they are made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
