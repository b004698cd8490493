"""Block masking of global crops for iBOT, as in DINOv2.

Source: block-wise masking of BEiT (Bao et al., arXiv:2106.08254, algorithm 1) with the batch rule of DINOv2 (Oquab
et al., arXiv:2304.07193): a fixed share of the crops of the batch is masked, at ratios spread evenly over a range.
Shapes: H x W patches of a global crop, N = HW, G samples in the global batch, so 2G global crops.
"""

import math
import random
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from essa_dist.data.plan import stable_seed
from essa_dist.settings import Config

MIN_PATCHES = 4
"""Smallest block."""
MAX_SHARE = 0.5
"""Largest block, as a share of N."""
MIN_ASPECT = 0.3
"""A block's height / width lies between this and its inverse, log-uniform."""
ATTEMPTS = 10
"""Blocks tried in vain before a mask is left below its target."""


class MaskConfig(Config):
    """Which patches of the global crops the student does not see."""

    probability: float = Field(default=0.5, ge=0, le=1)
    """Share of the global crops that are masked; 0 turns masking off."""
    ratio_min: float = Field(default=0.1, ge=0, le=1)
    """Share of patches masked in the least masked of them."""
    ratio_max: float = Field(default=0.5, ge=0, le=1)
    """Share of patches masked in the most masked of them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ratio_min > self.ratio_max:
            raise ValueError(f"ratio_min {self.ratio_min} is above ratio_max {self.ratio_max}: exchange them")
        return self


def mask_targets(config: MaskConfig, *, seed: int, step: int, crops: int, patches: int) -> list[int]:
    """How many patches to mask in each of the ``crops`` global crops of a global step; 0 = leave it whole.

    The range of ratios is cut in as many equal bins as crops are masked and each bin gives one ratio, so that every
    batch has about the same number of masked patches. A pure function of its arguments.
    """
    rng = random.Random(stable_seed("mask", seed, step))
    masked = round(config.probability * crops)
    width = (config.ratio_max - config.ratio_min) / max(masked, 1)
    ratios = [config.ratio_min + width * (bin_ + rng.random()) for bin_ in range(masked)]
    targets = [int(patches * ratio) for ratio in ratios] + [0] * (crops - masked)
    order = sorted(range(crops), key=[rng.random() for _ in range(crops)].__getitem__)
    return [targets[i] for i in order]


def block_mask(height: int, width: int, target: int, rng: random.Random) -> NDArray[np.bool_]:
    """A mask [H, W] of at most ``target`` patches made of blocks, laid until the target is met or none fits."""
    mask = np.zeros((height, width), dtype=np.bool_)
    left = target
    while left > 0:
        limit = min(left, int(MAX_SHARE * height * width))
        added = next((n for n in (_lay_block(mask, limit, rng) for _ in range(ATTEMPTS)) if n), 0)
        if not added:
            break
        left -= added
    return mask


def draw_masks(
    config: MaskConfig, *, seed: int, step: int, crops: int, select: Sequence[int], grid: tuple[int, int]
) -> NDArray[np.bool_]:
    """The masks [len(select), N] of the crops ``select`` of the 2G = ``crops`` of a global step.

    Every crop has its own generator, so a rank draws its own crops alone and gets what any other rank would get.
    """
    height, width = grid
    targets = mask_targets(config, seed=seed, step=step, crops=crops, patches=height * width)
    masks = [
        block_mask(height, width, targets[crop], random.Random(stable_seed("block", seed, step, crop)))
        for crop in select
    ]
    return np.stack(masks).reshape(len(select), height * width)


def _lay_block(mask: NDArray[np.bool_], limit: int, rng: random.Random) -> int:
    """Try one random block; returns how many new patches it masked, 0 where it doesn't fit."""
    rows, columns = mask.shape
    area = rng.uniform(MIN_PATCHES, limit)
    aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), -math.log(MIN_ASPECT)))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if height >= rows or width >= columns:
        return 0
    top, left = int(rng.random() * (rows - height + 1)), int(rng.random() * (columns - width + 1))
    block = mask[top : top + height, left : left + width]
    added = block.size - int(block.sum())
    if added > limit:
        return 0
    block[...] = True
    return added
