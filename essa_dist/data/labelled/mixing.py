"""Mixup, CutMix and label smoothing of a batch on its device: images meet those of the batch in reversed order.

Sources: mixup, Zhang et al., arXiv:1710.09412; CutMix, Yun et al., arXiv:1905.04899; smoothing, Szegedy et al.,
arXiv:1512.00567. Formulas and choices are those of ``timm.data.Mixup`` in its mode ``batch``, the oracle of the tests.
Shapes: B images on this rank, K classes, H x W pixels.
"""

import math
import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.plan import stable_seed
from essa_dist.errors import UsageError
from essa_dist.settings import Config

MIXABLE = ("multiclass", "binary", "multilabel")


class MixingConfig(Config):
    """Mixtures of two images, and soft labels."""

    mixup: float = Field(default=0, ge=0)
    """Images are blended by a share drawn from Beta(x, x); 0: not."""
    cutmix: float = Field(default=0, ge=0)
    """A rectangle is pasted, of a share drawn from Beta(x, x); 0: not."""
    probability: float = Field(default=1, ge=0, le=1)
    """Share of the batches that are mixed at all."""
    switch: float = Field(default=0.5, ge=0, le=1)
    """Share of them that CutMix gets, where both are on."""
    label_smoothing: float = Field(default=0, ge=0, lt=1)
    """This share of a label is spread evenly over the classes (several labels: over yes and no)."""

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return bool(self.mixup or self.cutmix or self.label_smoothing)


class Mixer:
    """Mixes the batches of one rank; a function of seed, step and rank, so that a resumed run mixes alike.

    ``task``: the kind of task. Raises UsageError where its targets can't be mixed, and mixing is asked for.
    """

    def __init__(self, config: MixingConfig, *, task: str, n_classes: int, seed: int, rank: int = 0) -> None:
        if config.active and task not in MIXABLE:
            raise UsageError(
                f"mixup, cutmix and label_smoothing don't go with task {task}: they need labels that can be soft, as "
                f"those of {', '.join(MIXABLE)}; set them to 0"
            )
        self.config, self.n_classes, self.seed, self.rank = config, n_classes, seed, rank

    def __call__(self, batch: LabelledBatch) -> LabelledBatch:
        """``batch``, normalised and on its device, with soft targets float32 [B, K]; itself where nothing is to be done.

        Of the whole batch of the rank, before it is split. What is not known (-1) of one image of a pair isn't known of
        the mixture. The images of ``batch`` stay as they are.
        """
        if not self.config.active:
            return batch
        rng = random.Random(stable_seed("mix", self.seed, batch.step, self.rank))
        targets = soft_targets(batch.targets, self.n_classes, self.config.label_smoothing)
        images, own = batch.images, 1.0
        if (self.config.mixup or self.config.cutmix) and rng.random() < self.config.probability:
            images, own = self._mix(images, rng)
        return replace(batch, images=images, targets=blend(targets, own))

    def _mix(self, images: Tensor, rng: random.Random) -> tuple[Tensor, float]:
        """The mixtures, and the share of each image in its own."""
        cut = bool(self.config.cutmix) and (not self.config.mixup or rng.random() < self.config.switch)
        alpha = self.config.cutmix if cut else self.config.mixup
        share = rng.betavariate(alpha, alpha)
        if not cut:
            return images.lerp(images.flip(0), 1 - share), share
        height, width = images.shape[-2:]
        top, bottom, left, right = box(height, width, share, rng)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def box(height: int, width: int, share: float, rng: random.Random) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a rectangle of 1 - ``share`` of the area around a random place, cut at the borders."""
    h, w = (int(side * math.sqrt(1 - share)) for side in (height, width))
    y, x = rng.randrange(height), rng.randrange(width)
    return max(0, y - h // 2), min(height, y + (h + 1) // 2), max(0, x - w // 2), min(width, x + (w + 1) // 2)


def soft_targets(targets: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """float32 [B, K] of class numbers [B], which share ``smoothing`` among all classes, or of several labels [B, K],
    which go towards 0.5 and stay -1 where they are not known."""
    if targets.ndim == 1:
        hard = F.one_hot(targets, n_classes).to(torch.float32)
        return hard * (1 - smoothing) + smoothing / n_classes
    soft = targets.to(torch.float32) * (1 - smoothing) + smoothing / 2
    return torch.where(targets < 0, -1.0, soft)


def blend(targets: Tensor, own: float) -> Tensor:
    """Soft targets of mixtures with the share ``own`` of each image."""
    if own == 1:
        return targets
    other = targets.flip(0)
    return torch.where((targets < 0) | (other < 0), -1.0, own * targets + (1 - own) * other)
