"""What a worker of a stream does: its own steps' batches, from its own draw of the tars."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from essa_dist.data.augment import make_crops
from essa_dist.data.batch import Batch
from essa_dist.data.header import look, read_meaning
from essa_dist.data.masks import MaskConfig
from essa_dist.data.pixels import PLAIN, Bounds, Stored, picture, read_stored
from essa_dist.data.plan import sample_seed, stable_seed
from essa_dist.data.quota import BadQuota
from essa_dist.data.rank_batches import one_thread, rank_masks
from essa_dist.data.stream import Bad, Encoded, TarStream, draw
from essa_dist.data.views import CropConfig, draw_window
from essa_dist.errors import DataError

IN_A_ROW = 1000
"""Undecodable samples one after the other that end a run, also where they are so few different ones that they keep
within the quota: a set of broken images only must not be searched for ever."""
WINDOW_PERCENT = (0.5, 99.5)
"""Percentiles of a 16-bit image without a window that are shown black and white."""


class Made(NamedTuple):
    """What a worker hands over for one step."""

    batch: Batch | None
    bad: tuple[Bad, ...]
    """Met since the last one."""
    failed: str = ""
    """Why there is no batch. As data, because an exception in a worker arrives as a page of traceback."""


class StreamBatches(IterableDataset[Made]):
    """One rank's batches of the steps in ``steps``; worker w of n makes each n-th of them, from the w-th on."""

    def __init__(
        self,
        stream: TarStream,
        crops: CropConfig,
        masks: MaskConfig,
        quota: BadQuota,
        *,
        seed: int,
        global_batch: int,
        rank: int,
        mine: slice,
        patch_size: int,
        window_jitter: float = 0,
    ) -> None:
        self.stream, self.crops, self.masks, self.quota = stream, crops, masks, quota
        self.seed, self.global_batch, self.rank, self.mine = seed, global_batch, rank, mine
        self.grid = (crops.global_size // patch_size,) * 2
        self.window_jitter = window_jitter
        self.steps = range(0)

    def __iter__(self) -> Iterator[Made]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        refused = _Refused(self.quota)
        # The first step is in the seed, so that a run that goes on does not see its beginning again.
        seed = stable_seed("stream", self.seed, self.steps.start, self.rank, worker, workers)
        samples = draw(self.stream, seed, refused)
        for step in self.steps[worker::workers]:
            try:
                with one_thread():
                    made = Made(self._batch(step, samples, refused), refused.take())
            except DataError as error:
                made = Made(None, refused.take(), str(error))
            yield made
            if made.failed:
                return

    def _batch(self, step: int, samples: Iterator[Encoded], refused: "_Refused") -> Batch:
        views, keys = [], []
        places = range(self.global_batch)[self.mine]
        for place in places:
            seed = sample_seed(self.seed, step * self.global_batch + place)
            image, key = self._usable(samples, seed, refused)
            views.append(make_crops(image, self.crops, seed))
            keys.append(key)
        masks = rank_masks(
            self.masks,
            seed=self.seed,
            step=step,
            global_batch=self.global_batch,
            mine=self.mine,
            grid=self.grid,
        )
        return Batch(
            global_crops=torch.stack([globals_ for globals_, _ in views], dim=1),
            local_crops=torch.stack([locals_ for _, locals_ in views], dim=1),
            masks=masks,
            keys=tuple(keys),
            step=step,
        )

    def _usable(self, samples: Iterator[Encoded], seed: int, refused: "_Refused") -> tuple[Tensor, str]:
        """The next sample that can be decoded, and its key."""
        where = ""
        for _, sample in zip(range(IN_A_ROW), samples, strict=False):
            refused.met += 1
            try:
                return self._decode(sample, seed), sample.key
            except Exception as error:  # a broken image makes decoders raise almost anything
                where = sample.where
                refused(Bad(where, " ".join(str(error).split()) or type(error).__name__))
        raise DataError(
            f"{IN_A_ROW} samples in a row can't be decoded, the last is {where}: look at them with essa pack index"
        )

    def _decode(self, sample: Encoded, seed: int) -> Tensor:
        """uint8 RGB [3, H, W], a view of interleaved pixels."""
        header = look(sample.image)  # refuses a decompression bomb before it is unpacked
        pixels = read_stored(sample.image, bits=header.bits, size=(header.height, header.width))
        bounds = self._bounds(sample, pixels if header.bits == 16 else None)
        if self.window_jitter and header.bits == 16:
            bounds = draw_window(bounds, self.window_jitter, seed)
        return picture(pixels, bounds)

    def _bounds(self, sample: Encoded, deep: Stored | None) -> Bounds:
        """The stored values shown black and white; ``deep``: pixels of 16 bits."""
        meaning = None
        if sample.about is not None:
            try:
                meaning = read_meaning(json.loads(sample.about))
            except (ValueError, RecursionError):
                meaning = None  # its label, if it was one, isn't needed here
        if meaning is not None:
            return meaning.bounds(self.stream.window)
        if (
            self.stream.window is not None
        ):  # as of an indexed set: nothing else is told, so stored values are real
            return Bounds(*self.stream.window)
        if deep is None:
            return PLAIN
        low, high = (float(value) for value in np.percentile(deep, WINDOW_PERCENT))
        return Bounds(low, max(high, low + 1))


class _Refused:
    """Keeps account of what one worker can't use. Raises DataError where that is more than its quota."""

    def __init__(self, quota: BadQuota) -> None:
        self.quota = quota
        self.met = 0
        """Samples tried so far, good or bad."""
        self._seen: set[str] = set()
        self._new: list[Bad] = []

    def __call__(self, bad: Bad) -> None:
        if bad.where in self._seen:
            return
        self._seen.add(bad.where)
        self._new.append(bad)
        if len(self._seen) > self.quota.allowed(self.met):
            raise DataError(f"more bad samples than allowed, the last is {bad.where} ({bad.reason})")

    def take(self) -> tuple[Bad, ...]:
        """Those that were not taken yet."""
        new, self._new = tuple(self._new), []
        return new
