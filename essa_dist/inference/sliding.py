"""Logits of images larger than the model's input: overlapping windows, averaged where they overlap.

As in mmsegmentation's slide mode, which SETR's and APLA's ADE20K recipes use (windows of 512 with a stride of 341): the
last window of each row and column is moved back inside the image, so every window is full.
Shapes: B images, H x W pixels, K classes.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.settings import Config


class WindowConfig(Config):
    """How an image is cut into windows."""

    crop: int | None = Field(None, ge=1)
    """Side of a window in pixels, a multiple of the patch size; null: the size that the model was trained at."""
    stride: int | None = Field(None, ge=1)
    """Pixels from one window to the next, at most ``crop``; null: two thirds of it, as 341 of 512 in APLA's recipe."""
    batch_size: int = Field(8, ge=1)
    """Windows in a forward pass, of all images together."""


def sliding_logits(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    crop: int,
    patch_size: int,
    stride: int | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Logits [B, K, H, W] of normalised ``images`` [B, 3, H, W] of any size.

    ``forward`` takes [b, 3, h, w] to [b, K, h, w] for sides that are multiples of ``patch_size`` up to ``crop``. An
    image of one window gives exactly ``forward(images)``. A side shorter than ``crop`` is one window: its pixels at
    the edge are repeated up to the next multiple of ``patch_size``, and the logits cut back.
    Raises UsageError for a crop that the patches don't tile and a stride that would leave gaps.
    """
    stride = max(2 * crop // 3, 1) if stride is None else stride
    _check(crop, stride, patch_size)
    size = images.shape[-2:]
    short = [-length % patch_size if length < crop else 0 for length in size]
    padded = F.pad(images, (0, short[1], 0, short[0]), mode="replicate") if any(short) else images
    height, width = padded.shape[-2:]
    window = min(crop, height), min(crop, width)
    corners = list(product(starts(height, window[0], stride), starts(width, window[1], stride)))
    total, times = None, images.new_zeros(height, width, dtype=torch.float32)
    for image, area, logits in _windows(forward, padded, corners, window, batch_size):
        if total is None:
            total = logits.new_zeros(len(images), len(logits), height, width)
        total[image, :, *area] += logits
        if image == 0:
            times[area] += 1
    assert total is not None
    return (total / times)[..., : size[0], : size[1]]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows of ``window`` begin on a side of ``length`` pixels, so that they cover it and none sticks out."""
    return [*range(0, length - window, stride), length - window]


def _windows(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    corners: list[tuple[int, int]],
    window: tuple[int, int],
    batch_size: int,
) -> Iterator[tuple[int, tuple[slice, slice], Tensor]]:
    """Image, rows and columns, and fp32 logits [K, h, w] of every window of every image."""
    places = [
        (image, (slice(top, top + window[0]), slice(left, left + window[1])))
        for image in range(len(images))
        for top, left in corners
    ]
    for first in range(0, len(places), batch_size):
        some = places[first : first + batch_size]
        logits = forward(torch.stack([images[image, :, *area] for image, area in some]))
        for (image, area), logits_Khw in zip(some, logits.float(), strict=True):
            yield image, area, logits_Khw


def _check(crop: int, stride: int, patch_size: int) -> None:
    if crop < patch_size or crop % patch_size:
        below = max(crop // patch_size * patch_size, patch_size)
        raise UsageError(
            f"crop={crop} is not a multiple of the patch size {patch_size}: use {below} or {below + patch_size}"
        )
    if not 1 <= stride <= crop:
        raise UsageError(f"stride={stride} would leave gaps between windows of crop={crop}: use 1..{crop}")
