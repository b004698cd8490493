"""What is done to a labelled image in training, by name; every part can be chosen otherwise."""

import re
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import Field, field_validator

from essa_dist.data.views import MIN_CROP_ASPECT, Policy, Scale, Shares
from essa_dist.errors import UsageError
from essa_dist.settings import Config

OFF = "none"
RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|p\d?\.?\d+|mstd(\d+(\.\d+)?|inf)|mmax\d+|inc[01]|t[a-z0-9]+))+")
"""What timm understands; it passes over some mistakes without a word."""

Crop = Literal["resize", "random_resized", "random"]
Fill = Literal["noise", "mean"]


@dataclass(frozen=True)
class Recipe:
    """All of it, in order: resize, crop, flips, turns, RandAugment, colours, erasing. Meanings: :class:`AugmentConfig`."""

    crop: Crop = "resize"
    resize: int = 0
    scale: Scale = (1.0, 1.0)
    least_aspect: float = MIN_CROP_ASPECT
    hflip: float = 0.0
    vflip: float = 0.0
    rotate: bool = False
    rand_augment: str = OFF
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    erasing: float = 0.0
    erasing_fill: Fill = "noise"

    @property
    def policy(self) -> Policy:
        """Flips, turns and colours, as the drawing of views knows them."""
        names = ("hflip", "vflip", "rotate", "jitter", "brightness", "contrast", "saturation", "hue")
        shared = {name: getattr(self, name) for name in names}
        return Policy(**shared, grayscale=self.grayscale, blur=Shares(0, 0, 0), solarise=Shares(0, 0, 0))


RECIPES: dict[str, Recipe] = {
    "none": Recipe(),
    # Our choice: what hardly any modality minds.
    "light": Recipe(crop="random_resized", scale=(0.6, 1.0), hflip=0.5),
    # Supervised adaptation in the official code of APLA and ESSA (MoeinSorkhei/APLA at 3f41ec9). Whether its resize to
    # 256 keeps the aspect is our reading of its self-supervised part, where it does not.
    "apla": Recipe(
        crop="random_resized",
        resize=256,
        scale=(0.8, 1.2),
        hflip=0.5,
        jitter=0.8,
        brightness=0.2,
        contrast=0.2,
        saturation=0.1,
        hue=0.1,
    ),
    # RL4M/MED-PEFT at 086aeb4: the runs with SGD, and those with AdamW.
    "medpeft_sgd": Recipe(crop="random_resized", scale=(0.08, 1.0), hflip=0.5, grayscale=1.0),
    "medpeft_adamw": Recipe(
        crop="random_resized",
        scale=(0.08, 1.0),
        hflip=0.5,
        rand_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
    ),
}


class AugmentConfig(Config):
    """How training images are changed. What is null is as the policy has it."""

    policy: Literal["none", "light", "apla", "medpeft_sgd", "medpeft_adamw"] = "light"
    """`none`: resized only; `light`: a box of 60 to 100 % of the area, mirrored half of the time; `apla`, `medpeft_sgd`,
    `medpeft_adamw`: the papers' recipes, as their code has them."""
    crop: Crop | None = None
    """`resize`: the whole image, squeezed to a square; `random_resized`: a box of it, likewise; `random`: a window of
    `image_size` pixels at the image's own scale, filled up where the image is smaller."""
    resize: int | None = Field(default=None, ge=0)
    """Every image is first made this many pixels square, its aspect not kept; 0: cropped as it is."""
    scale: Scale | None = None
    """`random_resized`: share of the image's area, least and most. Boxes beyond the image are drawn again."""
    least_aspect: float | None = Field(default=None, gt=0, le=1)
    """`random_resized`: width / height of the box lies between this and its inverse."""
    hflip: float | None = Field(default=None, ge=0, le=1)
    """Probability of a mirror image, left to right."""
    vflip: float | None = Field(default=None, ge=0, le=1)
    """Probability of a mirror image, top to bottom."""
    rotate: bool | None = None
    """By 0, 90, 180 or 270 degrees."""
    rand_augment: str | None = None
    """RandAugment in timm's words, as `rand-m9-mstd0.5-inc1`; `none`: off. Not for segmentation."""
    jitter: float | None = Field(default=None, ge=0, le=1)
    """Probability that brightness, contrast, saturation and hue are changed."""
    brightness: float | None = Field(default=None, ge=0)
    """By a factor of 1 - x to 1 + x."""
    contrast: float | None = Field(default=None, ge=0)
    """By a factor of 1 - x to 1 + x."""
    saturation: float | None = Field(default=None, ge=0)
    """By a factor of 1 - x to 1 + x."""
    hue: float | None = Field(default=None, ge=0, le=0.5)
    """By up to this share of a full turn."""
    grayscale: float | None = Field(default=None, ge=0, le=1)
    """Probability that colours become grey."""
    erasing: float | None = Field(default=None, ge=0, le=1)
    """Probability that a rectangle of 2 to 33 % of the image is erased. Not for segmentation."""
    erasing_fill: Fill | None = None
    """What it is filled with: `noise` of the data set's mean and standard deviation, or its `mean`."""

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: Scale | None) -> Scale | None:
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError(f"0 < least <= most must hold, got {scale[0]:g}, {scale[1]:g}")
        return scale

    @field_validator("rand_augment")
    @classmethod
    def _understood(cls, words: str | None) -> str | None:
        if words not in (None, OFF) and not RAND_AUGMENT.fullmatch(words):
            raise ValueError(
                f"{words!r} is none of timm's RandAugment strings; e.g. rand-m9-mstd0.5-inc1, or none"
            )
        return words

    def recipe(self, *, masks: bool = False) -> Recipe:
        """The policy with what is chosen otherwise.

        Raises UsageError where ``masks`` could not follow the images.
        """
        chosen = {name: value for name, value in self.model_dump().items() if value is not None}
        del chosen["policy"]
        recipe = Recipe(**asdict(RECIPES[self.policy]) | chosen)
        if masks and (recipe.rand_augment != OFF or recipe.erasing):
            name, off = ("erasing", 0) if recipe.rand_augment == OFF else ("rand_augment", OFF)
            raise UsageError(
                f"data.augment.{name} of policy {self.policy} moves or hides pixels and masks don't follow: for "
                f"segmentation set data.augment.{name}={off}, or another policy"
            )
        return recipe
