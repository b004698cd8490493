"""What any step of a run saw, made again from its config: samples, crops and masks are functions of the seed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from essa_dist.backbones import BackboneConfig, build_architecture
from essa_dist.data import Batch, PackedImages
from essa_dist.data.loader import DataConfig
from essa_dist.data.plan import SamplePlan, sample_seed
from essa_dist.data.rank_batches import CropBatches, Failed, Request
from essa_dist.data.views import View, draw_views
from essa_dist.errors import DataError, UsageError


class SeenStep(NamedTuple):
    """Some samples of one step: S of them."""

    images: PackedImages
    data: DataConfig
    batch: Batch
    """Their crops, uint8, and masks."""
    indices: list[int]
    """Their numbers in ``images``: of what took its place, where a sample is broken."""
    positions: list[int]
    """Their places in the stream of samples."""
    views: list[list[View]]
    """Where each crop was cut, and what was done to it."""


def seen_step(
    config: Mapping[str, Any], update: int, *, first: int = 0, count: int = 8, train: str | None = None
) -> SeenStep:
    """Samples ``first`` to ``first + count - 1`` of the batch of ``update`` (from 1, as metrics.jsonl counts).

    ``config``: that of the run; ``train``: where its packed data lie now. Raises UsageError, DataError or ValueError
    where the config or the images aren't those of a run.
    """
    if not isinstance(config.get("data"), dict) or not isinstance(config.get("backbone"), dict):
        raise UsageError("config.yaml has no data and backbone sections: it is not one that adapt wrote")
    data = DataConfig.model_validate(dict(config["data"]) | ({"train": train} if train else {}))
    seed, global_batch = int(config.get("seed", 0)), int(config.get("batch_size", count))
    if not first < global_batch:
        raise UsageError(f"first={first}, but a batch of this run has samples 0 to {global_batch - 1}")
    images = data.open()
    with torch.device("meta"):  # the patch size is all that is wanted of it
        patch_size = build_architecture(BackboneConfig.model_validate(config["backbone"])).patch_size
    mine = slice(first, min(first + count, global_batch))
    batches = CropBatches(
        images,
        data.crops,
        data.masks,
        seed=seed,
        global_batch=global_batch,
        mine=mine,
        patch_size=patch_size,
        allowed=data.bad_sample_quota.allowed(len(images)),
        window_jitter=data.window_jitter,
    )
    plan = SamplePlan(len(images), seed)
    positions = plan.positions(update - 1, global_batch)[mine]
    planned = plan.at(positions)
    batch = batches[Request(update - 1, positions, planned)]
    if isinstance(batch, Failed):
        raise DataError(batch.reason)
    indices = [_found(images, index, key) for index, key in zip(planned, batch.keys, strict=True)]
    views = [
        draw_views(
            data.crops, int(images.index.height[i]), int(images.index.width[i]), sample_seed(seed, position)
        )
        for i, position in zip(indices, positions, strict=True)
    ]
    return SeenStep(images, data, batch, indices, list(positions), views)


def _found(images: PackedImages, index: int, key: str) -> int:
    """The sample called ``key``: ``index``, or a later one that took its place."""
    return next(i for i in ((index + n) % len(images) for n in range(len(images))) if images.keys[i] == key)
