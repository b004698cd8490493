"""Every sample of a set once, over all ranks, as it is evaluated.

Shapes: B images in a batch, H x W pixels.
"""

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.labelled.labels import Labels
from essa_dist.data.labelled.transforms import Evaluation, prepare
from essa_dist.data.shards import PackedImages, UndecodableImage
from essa_dist.errors import DataError, UsageError


class _Prepared(NamedTuple):
    image: Tensor
    target: Tensor


def evaluation_batches(
    images: PackedImages,
    labels: Labels,
    samples: NDArray[np.int64] | None = None,
    *,
    image_size: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    how: Evaluation = "whole",
    share: float = 0.875,
    threads: int = 2,
) -> Iterator[LabelledBatch]:
    """uint8 batches of ``samples`` (None: all that have a label): each of them on one rank, rank r has r, r + W, ...

    All ranks have as many batches of the same sizes, since sharded models need as many calls. Where samples are not a
    multiple of W, the last ranks repeat their last sample (or the set's), with -1 in ``indices``: count what is >= 0.
    Masks go with their images (``how``: see :func:`prepare`); ``native`` needs ``batch_size=1``. ``threads`` decode, one
    batch ahead. Raises DataError naming the key of an image that can't be read (none is skipped).
    """
    if how == "native" and batch_size != 1:
        raise UsageError(
            f"images at their own size come one by one: evaluation=native needs batch_size=1, not {batch_size}"
        )
    chosen = np.flatnonzero(labels.known) if samples is None else samples
    if not len(chosen):
        raise UsageError(f"split {images.split!r} of {images.manifest.name} leaves no sample to be evaluated")
    numbers, counted = rank_share(chosen, rank, world_size)
    own = threading.local()  # each thread reads by file descriptors of its own

    def start_thread() -> None:
        own.images = copy.copy(images)

    def load(i: int) -> _Prepared:
        return _prepare(own.images, labels, i, image_size, how, share)

    with ThreadPoolExecutor(max(1, threads), initializer=start_thread) as pool:

        def submit(start: int) -> list[Future[_Prepared]]:
            return [pool.submit(load, i) for i in numbers[start : start + batch_size].tolist()]

        coming = submit(0)
        try:
            for step, start in enumerate(range(0, len(numbers), batch_size)):
                ready, coming = coming, submit(start + batch_size)
                loaded = [future.result() for future in ready]
                part = slice(start, start + batch_size)
                yield LabelledBatch(
                    images=torch.stack([one.image for one in loaded]),
                    targets=torch.stack([one.target for one in loaded]),
                    indices=torch.from_numpy(np.where(counted[part], numbers[part], -1)),
                    keys=tuple(images.keys[i] for i in numbers[part]),
                    step=step,
                )
        finally:
            for future in coming:  # whoever reads may have gone
                future.cancel()


def rank_share(
    samples: NDArray[np.int64], rank: int, world_size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The samples of one rank, as many as of any other, and which of them are counted: a repeat is not."""
    mine = samples[rank::world_size]
    missing = -(-len(samples) // world_size) - len(mine)
    last = mine[-1:] if len(mine) else samples[-1:]
    numbers = np.concatenate([mine, np.repeat(last, missing)]).astype(np.int64)
    return numbers, np.arange(len(numbers)) < len(mine)


def _prepare(
    images: PackedImages, labels: Labels, i: int, image_size: int, how: Evaluation, share: float
) -> _Prepared:
    try:
        image, target = images.decode(i), labels.target(images, i)
    except UndecodableImage as error:
        raise DataError(f"{error}: evaluation skips none, so mend or remove it and pack again") from error
    mask = target if labels.kind == "mask" else None
    image, mask = prepare(image, mask, image_size, how, share)
    return _Prepared(image.contiguous(), target if mask is None else mask)
