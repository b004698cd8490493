"""The images shown on the page: which ones, and in what form a model and a plot take them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from essa_dist.backbones import Backbone
from essa_dist.data import PackedImages
from essa_dist.data.batch import normalise

SIDE = 448
"""Pixels: twice the usual 224, so that the maps have four times as many patches."""


class Shown(NamedTuple):
    """Square uint8 images [3, SIDE, SIDE] and the name of each."""

    images: list[Tensor]
    names: list[str]


def shown_images(packed: PackedImages, count: int) -> Shown:
    """``count`` images (fewer if there are fewer), the same ones at every call."""
    chosen = choose(packed.labels, len(packed), count)
    names = [_name(packed, index) for index in chosen]
    return Shown([square(packed.decode(index)) for index in chosen], names)


def _name(packed: PackedImages, index: int) -> str:
    return packed.keys[index] if packed.labels is None else packed.classes[int(packed.labels[index])]


def choose(labels: NDArray[np.int64] | None, total: int, count: int) -> list[int]:
    """Positions of ``count`` samples: the first of each class in turn, then the second of each, and so on.

    Fewer than one per class takes classes at even distances; without labels, samples at even distances.
    """
    if labels is None:
        return _spread(range(total), count)
    rounds: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        rounds.setdefault(label, []).append(index)
    by_class = [rounds[label] for label in sorted(rounds)]
    if count < len(by_class):
        return [by_class[place][0] for place in _spread(range(len(by_class)), count)]
    longest = max(len(members) for members in by_class)
    turns = [members[turn] for turn in range(longest) for members in by_class if turn < len(members)]
    return turns[:count]


def _spread(items: Sequence[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def square(image: Tensor, side: int = SIDE) -> Tensor:
    """uint8 [3, H, W] to uint8 [3, side, side]: short side resized to ``side``, then the centre."""
    resized = F.resize(image, [side], interpolation=F.InterpolationMode.BICUBIC, antialias=True)
    cropped: Tensor = F.center_crop(resized, [side, side])
    return cropped


def as_input(images: Sequence[Tensor], backbone: Backbone) -> Tensor:
    """What ``backbone`` takes, [B, 3 (or 1), S, S]: S is the multiple of its patch size nearest to SIDE."""
    side = max(1, round(SIDE / backbone.patch_size)) * backbone.patch_size
    return normalise(torch.stack([square(image, side) for image in images]), backbone.mean, backbone.std)
