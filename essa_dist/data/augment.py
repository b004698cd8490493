"""Multi-crop augmentation: two global and L local crops of one image, a pure function of (image, config, seed).

Source: DINOv2 (Oquab et al., arXiv:2304.07193, appendix B). The distributions are those of torchvision's v2
transforms of the same names; every random number comes from a generator of the sample's own, so that a sample has the
same crops on any rank and worker and the process's generators are left alone.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from essa_dist.data import colour
from essa_dist.settings import Config

CROP_ATTEMPTS = 10
"""Boxes tried before the crop falls back to the centre of the image."""
MIN_CROP_ASPECT = 3 / 4
"""Width / height of a crop lies between this and its inverse, log-uniform."""
BLUR_SIGMA = (0.1, 2.0)
"""Pixels."""


class Views(NamedTuple):
    """A probability for each kind of crop."""

    global_1: float
    global_2: float
    local: float


@dataclass(frozen=True)
class Policy:
    """What is done to a crop after it is cut, in the order of the fields."""

    hflip: float
    vflip: float
    rotate: bool  # by 0, 90, 180 or 270 degrees
    jitter: float  # probability that the four colour changes below are made, in random order
    brightness: float  # factor 1 - x .. 1 + x
    contrast: float
    saturation: float
    hue: float  # turn of -x .. x
    grayscale: float
    blur: Views
    solarise: Views


def _dinov2(blur: Views) -> Policy:
    return Policy(
        hflip=0.5,
        vflip=0,
        rotate=False,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale=0.2,
        blur=blur,
        solarise=Views(0, 0.2, 0),
    )


POLICIES: dict[str, Policy] = {
    # Blur as the released DINOv2 models had it: their code applied it with 1 - p of the p that it names.
    "dinov2": _dinov2(blur=Views(0, 0.9, 0.5)),
    "as_named": _dinov2(blur=Views(1.0, 0.1, 0.5)),
    # Tissue and cells have no upright side, but their colour is a finding: any turn, little change of stain.
    "medical": Policy(
        hflip=0.5,
        vflip=0.5,
        rotate=True,
        jitter=0.8,
        brightness=0.2,
        contrast=0.2,
        saturation=0.1,
        hue=0.02,
        grayscale=0,
        blur=Views(0.5, 0.1, 0.3),
        solarise=Views(0, 0, 0),
    ),
}

Scale = tuple[float, float]


class CropConfig(Config):
    """How many crops are cut from an image, how large, and what is done to them."""

    policy: Literal["dinov2", "as_named", "medical"] = "dinov2"
    """`dinov2`: as its released models were trained, blur probabilities inverted; `as_named`: the same with the
    probabilities that its code names; `medical`: gentler colour, flips and quarter turns."""
    global_size: int = Field(default=224, ge=8)
    """Pixels, square; a multiple of the patch size."""
    local_size: int = Field(default=98, ge=8)
    """Pixels, square; a multiple of the patch size."""
    n_local: int = Field(default=8, ge=0)
    """Local crops per image."""
    global_scale: Scale = (0.32, 1.0)
    """Share of the image's area in a global crop: least, most."""
    local_scale: Scale = (0.05, 0.32)
    """Share of the image's area in a local crop: least, most."""
    resize: int | None = Field(default=None, ge=8)
    """Every image is first made this many pixels square, its aspect not kept; none: cropped as it is."""

    @field_validator("global_scale", "local_scale")
    @classmethod
    def _within_the_image(cls, scale: Scale) -> Scale:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"0 < least <= most <= 1 must hold, got {scale[0]:g}, {scale[1]:g}")
        return scale


def make_crops(image: Tensor, config: CropConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Cut the crops of ``image`` (uint8 [3, H, W], any size).

    Returns uint8 global [2, 3, g, g] and local [L, 3, l, l] crops, the same for the same arguments.
    """
    policy, rng = POLICIES[config.policy], random.Random(seed)
    if config.resize is not None:
        image = _resize(image, config.resize)
    globals_ = torch.empty(2, 3, config.global_size, config.global_size, dtype=torch.uint8)
    locals_ = torch.empty(config.n_local, 3, config.local_size, config.local_size, dtype=torch.uint8)
    for view, out in enumerate(globals_):
        _fill(out, image, config.global_scale, policy, view, rng)
    for out in locals_:
        _fill(out, image, config.local_scale, policy, 2, rng)
    return globals_, locals_


def _fill(out: Tensor, image: Tensor, scale: Scale, policy: Policy, view: int, rng: random.Random) -> None:
    """Write one crop into ``out``. ``view`` indexes :class:`Views`."""
    top, left, height, width = crop_box(image.shape[1], image.shape[2], scale, rng)
    crop = _turn(_resize(image[:, top : top + height, left : left + width], out.shape[-1]), policy, rng)
    pixels = crop.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    if rng.random() < policy.jitter:
        _jitter_(pixels, policy, rng)
    if rng.random() < policy.grayscale:
        colour.grayscale_(pixels)
    if rng.random() < policy.blur[view]:
        pixels = colour.blur(pixels, rng.uniform(*BLUR_SIGMA))
    out.copy_(pixels.round_())
    if rng.random() < policy.solarise[view]:
        out.copy_(colour.solarise(out))


def crop_box(height: int, width: int, scale: Scale, rng: random.Random) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width) inside an image, as ``RandomResizedCrop`` draws it."""
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(MIN_CROP_ASPECT), -math.log(MIN_CROP_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    # An image so narrow that no box fits: its centre, as near to the allowed aspects as it can be.
    h = min(height, round(width / MIN_CROP_ASPECT))
    w = min(width, round(height / MIN_CROP_ASPECT))
    return (height - h) // 2, (width - w) // 2, h, w


def _resize(image: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing, on uint8 (torch has a vectorised kernel for exactly this)."""
    if image.shape[1:] == (size, size):
        return image
    if image.shape[1:] == (1, 1):  # torch's kernel can't tell the memory layout of one pixel, and fails
        return image.expand(3, size, size)
    return F.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0]


def _turn(crop: Tensor, policy: Policy, rng: random.Random) -> Tensor:
    flipped = [axis for axis, share in ((2, policy.hflip), (1, policy.vflip)) if rng.random() < share]
    crop = crop.flip(flipped) if flipped else crop
    return crop.rot90(rng.randrange(4), (1, 2)) if policy.rotate else crop


def _jitter_(pixels: Tensor, policy: Policy, rng: random.Random) -> None:
    changes = [
        (colour.brightness_, _around_one(policy.brightness, rng)),
        (colour.contrast_, _around_one(policy.contrast, rng)),
        (colour.saturation_, _around_one(policy.saturation, rng)),
        (colour.hue_, rng.uniform(-policy.hue, policy.hue)),
    ]
    rng.shuffle(changes)
    for change, amount in changes:
        change(pixels, amount)


def _around_one(spread: float, rng: random.Random) -> float:
    return rng.uniform(max(0.0, 1 - spread), 1 + spread)
