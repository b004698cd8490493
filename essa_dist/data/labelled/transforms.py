"""A labelled image, and its mask, as they are trained on or evaluated: a function of image, recipe and seed alone.

Shapes: image uint8 [3, H, W] of any size, mask uint8 [H, W], S the side of the result.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from essa_dist.data.augment import apply_view, turn
from essa_dist.data.labelled.labels import IGNORE
from essa_dist.data.labelled.policies import OFF, Recipe
from essa_dist.data.plan import stable_seed
from essa_dist.data.views import Box, View, crop_box, draw_view

Evaluation = Literal["whole", "centre_crop", "native"]
RGB = Sequence[float]

ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = 0.3
ERASE_ATTEMPTS = 10
"""As timm's RandomErasing (Zhong et al., arXiv:1708.04896)."""
TRANSLATION = 0.45
"""RandAugment: the most that an image is moved, as a share of its side (timm's training script)."""


class Statistics(NamedTuple):
    """Of the data set's pixels, on the scale 0..1: what empty places are filled with."""

    mean: RGB
    std: RGB


def augment(
    image: Tensor, mask: Tensor | None, recipe: Recipe, size: int, statistics: Statistics, seed: int
) -> tuple[Tensor, Tensor | None]:
    """uint8 [3, S, S] and, where there is a ``mask``, uint8 [S, S]: the same for the same arguments.

    Masks are resized to the nearest value; beyond the image they are 255. A recipe for masks comes from
    ``recipe(masks=True)``.
    """
    rng = random.Random(seed)
    if recipe.resize:
        image, mask = resized(image, mask, recipe.resize, recipe.resize)
    if recipe.crop == "random":
        image, mask = padded(image, mask, size, statistics.mean)
    view = draw_view(_box(image, recipe, size, rng), recipe.policy, rng)
    out = torch.empty(3, size, size, dtype=torch.uint8)
    if recipe.rand_augment == OFF:
        apply_view(out, image, view)
    else:
        apply_view(out, image, view._replace(jitter=(), grey=False))
        out = rand_augment(out, recipe.rand_augment, statistics.mean, stable_seed("rand_augment", seed))
        if view.jitter or view.grey:
            apply_view(
                out, out, View(Box(0, 0, size, size), False, False, 0, view.jitter, view.grey, None, False)
            )
    if rng.random() < recipe.erasing:
        erase_(out, statistics, noise=recipe.erasing_fill == "noise", rng=rng)
    if mask is None:
        return out, None
    top, left, height, width = view.box
    cut = nearest(mask[top : top + height, left : left + width], size, size)
    return out, turn(cut[None], view)[0].contiguous()


def prepare(
    image: Tensor, mask: Tensor | None, size: int, how: Evaluation, share: float = 0.875
) -> tuple[Tensor, Tensor | None]:
    """An image, and its mask, as they are evaluated.

    ``whole``: squeezed to S x S; ``centre_crop``: its shorter side made S / ``share``, then the central S x S;
    ``native``: as it is.
    """
    if how == "native":
        return image, mask
    if how == "whole":
        return resized(image, mask, size, size)
    height, width = image.shape[1:]
    factor = max(size, round(size / share)) / min(height, width)
    image, mask = resized(image, mask, max(size, round(height * factor)), max(size, round(width * factor)))
    top, left = (round((side - size) / 2) for side in image.shape[1:])
    cut = (slice(top, top + size), slice(left, left + size))
    return image[:, *cut], None if mask is None else mask[cut]


def resized(image: Tensor, mask: Tensor | None, height: int, width: int) -> tuple[Tensor, Tensor | None]:
    """Bicubic with antialiasing, and nearest."""
    if image.shape[1:] != (height, width):
        if image.shape[1:] == (1, 1):  # torch's kernel can't tell the memory layout of one pixel, and fails
            image = image.expand(3, height, width)
        else:
            image = F.interpolate(image[None], size=(height, width), mode="bicubic", antialias=True)[0]
    return image, None if mask is None else nearest(mask, height, width)


def nearest(mask: Tensor, height: int, width: int) -> Tensor:
    """uint8 [height, width]."""
    if mask.shape == (height, width):
        return mask
    return F.interpolate(mask[None, None], size=(height, width), mode="nearest-exact")[0, 0]


def padded(image: Tensor, mask: Tensor | None, size: int, mean: RGB) -> tuple[Tensor, Tensor | None]:
    """In the middle of at least S x S pixels of the colour ``mean``, of IGNORE in the mask."""
    height, width = image.shape[1:]
    if min(height, width) >= size:
        return image, mask
    top, left = max(0, size - height) // 2, max(0, size - width) // 2
    place = (slice(top, top + height), slice(left, left + width))
    shape = max(height, size), max(width, size)
    canvas = _colour(mean).view(3, 1, 1).repeat(1, *shape)
    canvas[:, *place] = image
    if mask is None:
        return canvas, None
    judged = torch.full(shape, IGNORE, dtype=torch.uint8)
    judged[place] = mask
    return canvas, judged


def rand_augment(image: Tensor, words: str, mean: RGB, seed: int) -> Tensor:
    """timm's RandAugment of a square image."""
    transform = _rand_augment(words, tuple(_colour(mean).tolist()), int(image.shape[-1] * TRANSLATION))
    with _seeded(seed):
        changed = transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()


def erase_(image: Tensor, statistics: Statistics, *, noise: bool, rng: random.Random) -> None:
    """Fill a rectangle of [3, S, S]."""
    height, width = image.shape[1:]
    for _ in range(ERASE_ATTEMPTS):
        area = height * width * rng.uniform(*ERASED_AREA)
        aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT), -math.log(ERASED_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            generator = torch.Generator().manual_seed(rng.getrandbits(63))
            values = torch.randn(3, h, w, generator=generator) if noise else torch.zeros(3, h, w)
            mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in statistics)
            filled = (values * std + mean).mul_(255).round_().clamp_(0, 255)
            image[:, top : top + h, left : left + w] = filled
            return


def _box(image: Tensor, recipe: Recipe, size: int, rng: random.Random) -> Box:
    height, width = image.shape[1:]
    if recipe.crop == "random_resized":
        return crop_box(height, width, recipe.scale, rng, recipe.least_aspect)
    if recipe.crop == "random":
        return Box(rng.randint(0, height - size), rng.randint(0, width - size), size, size)
    return Box(0, 0, height, width)


def _colour(mean: RGB) -> Tensor:
    return torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)


@lru_cache(maxsize=8)
def _rand_augment(words: str, colour: tuple[int, int, int], translation: int) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform(words, {"img_mean": colour, "translate_const": translation})


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """timm draws from the generators that the whole process shares: they are put back as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (timm's)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
