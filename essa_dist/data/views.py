"""What is done to an image: two global and L local views, drawn apart from being applied.

:func:`draw_views` is a pure function of settings, image size and seed; the decoders apply the very same views. The
distributions are those of torchvision's v2 transforms of the same names. Every random number comes from a generator
of the sample's own, so that a sample has the same views on any rank, worker and decoder.
Source: DINOv2 (Oquab et al., arXiv:2304.07193, appendix B).
"""

import math
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from essa_dist.data.pixels import Bounds
from essa_dist.data.plan import stable_seed
from essa_dist.settings import Config

CROP_ATTEMPTS = 10
"""Boxes tried before the crop falls back to the centre of the image."""
MIN_CROP_ASPECT = 3 / 4
"""Width / height of a crop lies between this and its inverse, log-uniform."""
BLUR_SIGMA = (0.1, 2.0)
"""Pixels."""
N_GLOBAL = 2


class Shares(NamedTuple):
    """A probability for each kind of view."""

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
    blur: Shares
    solarise: Shares


def _dinov2(blur: Shares) -> Policy:
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
        solarise=Shares(0, 0.2, 0),
    )


POLICIES: dict[str, Policy] = {
    # Blur as the released DINOv2 models had it: their code applied it with 1 - p of the p that it names.
    "dinov2": _dinov2(blur=Shares(0, 0.9, 0.5)),
    "as_named": _dinov2(blur=Shares(1.0, 0.1, 0.5)),
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
        blur=Shares(0.5, 0.1, 0.3),
        solarise=Shares(0, 0, 0),
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


class Box(NamedTuple):
    """Pixels of the image, after ``resize`` where that is set."""

    top: int
    left: int
    height: int
    width: int


Change = tuple[Literal["brightness", "contrast", "saturation", "hue"], float]
"""A colour change and its amount: the factor of the blend, or the turn of the hue."""


class View(NamedTuple):
    """One crop, and what is done to it in the order of the fields."""

    box: Box
    hflip: bool
    vflip: bool
    quarter_turns: int  # counter-clockwise, after the flips
    jitter: tuple[Change, ...]  # in order; empty: none
    grey: bool
    sigma: float | None  # of the blur, in pixels; None: not blurred
    solarise: bool


def draw_views(config: CropConfig, height: int, width: int, seed: int) -> list[View]:
    """The 2 global, then L local views of an image of this size; the same for the same arguments."""
    policy, rng = POLICIES[config.policy], random.Random(seed)
    if config.resize is not None:
        height = width = config.resize
    scales = [config.global_scale] * N_GLOBAL + [config.local_scale] * config.n_local
    return [
        draw_view(crop_box(height, width, scale, rng), policy, rng, min(view, N_GLOBAL))
        for view, scale in enumerate(scales)
    ]


def crop_box(
    height: int, width: int, scale: Scale, rng: random.Random, least_aspect: float = MIN_CROP_ASPECT
) -> Box:
    """A random box inside an image, as ``RandomResizedCrop`` draws it.

    Width / height lies between ``least_aspect`` and its inverse, log-uniform.
    """
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(least_aspect), -math.log(least_aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w)
    # An image so narrow that no box fits: its centre, as near to the allowed aspects as it can be.
    h = min(height, round(width / least_aspect))
    w = min(width, round(height / least_aspect))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def draw_window(bounds: Bounds, spread: float, seed: int) -> Bounds:
    """``bounds`` with its centre moved by up to ``spread`` of its width, and its width changed by up to that share.

    Its generator is not that of the views, which stay what they are without it.
    """
    rng = random.Random(stable_seed("window", seed))
    width = bounds.high - bounds.low
    centre = (bounds.low + bounds.high) / 2 + rng.uniform(-spread, spread) * width
    half = width * _around_one(spread, rng) / 2
    return Bounds(centre - half, centre + half)


def draw_view(box: Box, policy: Policy, rng: random.Random, kind: int = 0) -> View:
    """What is done to a crop. ``kind`` indexes :class:`Shares`. Runs are repeatable as long as the order of draws stays."""
    return View(
        box=box,
        hflip=rng.random() < policy.hflip,
        vflip=rng.random() < policy.vflip,
        quarter_turns=rng.randrange(4) if policy.rotate else 0,
        jitter=_draw_jitter(policy, rng) if rng.random() < policy.jitter else (),
        grey=rng.random() < policy.grayscale,
        sigma=rng.uniform(*BLUR_SIGMA) if rng.random() < policy.blur[kind] else None,
        solarise=rng.random() < policy.solarise[kind],
    )


def _draw_jitter(policy: Policy, rng: random.Random) -> tuple[Change, ...]:
    changes: list[Change] = [
        ("brightness", _around_one(policy.brightness, rng)),
        ("contrast", _around_one(policy.contrast, rng)),
        ("saturation", _around_one(policy.saturation, rng)),
        ("hue", rng.uniform(-policy.hue, policy.hue)),
    ]
    rng.shuffle(changes)
    return tuple(changes)


def _around_one(spread: float, rng: random.Random) -> float:
    return rng.uniform(max(0.0, 1 - spread), 1 + spread)
