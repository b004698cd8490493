"""Segmentation: a class for every pixel, one of K with the background first.

Shapes: B images of a batch, M of a set, H x W pixels, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.errors import DivergedError, UsageError
from essa_dist.evaluation.metrics.judged import Groups
from essa_dist.evaluation.metrics.scores import Scores
from essa_dist.evaluation.metrics.segmentation import IGNORE, JudgedMasks, mask_rows
from essa_dist.settings import Config
from essa_dist.tasks.interface import ClassCounts
from essa_dist.tasks.weights import Weights, class_weights

SMOOTH = 1.0
"""Pixels added to both sides of a Dice: a class that is rightly nowhere has a loss near 0, not 0 / 0."""


class SegmentationConfig(Config):
    kind: Literal["segmentation"] = "segmentation"
    """A class for every pixel."""
    loss: Literal["ce", "dice", "ce+dice"] = "ce+dice"
    """Cross-entropy of pixels, soft Dice of classes, or their sum, which suits small structures."""
    class_weights: Weights = "none"
    """Weight of each class in the cross-entropy, background first; balanced: by the inverse of its share of the pixels.
    They are scaled to a mean of 1 over the training pixels."""
    target_metric: Literal["dice", "iou", "dice_pooled", "iou_pooled"] = "dice"
    """Chooses the best checkpoint. dice and iou: mean over images, then classes; pooled: over all pixels of the set."""
    hd95: bool = True
    """Measure distances of surfaces too: some milliseconds for each image and class."""


class Segmentation:
    """See :class:`~essa_dist.tasks.interface.Task`; ``counts`` are of the known pixels.

    ``score`` is :meth:`rows` and :meth:`score_rows`: ranks exchange rows, a few numbers for each image, and no masks.
    """

    kind: ClassVar[str] = "segmentation"
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self, config: SegmentationConfig, classes: Sequence[str], counts: ClassCounts | None = None
    ) -> None:
        self.config, self.classes = config, tuple(classes)
        if not 2 <= len(self.classes) <= IGNORE:
            raise UsageError(
                f"segmentation of {len(self.classes)} classes: masks need 2..{IGNORE}, background first; pack images with masks"
            )
        self.n_outputs = len(self.classes)
        self.target_metric: str = config.target_metric
        self.weight_K = class_weights(config.class_weights, counts, self.classes)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of logits [B, K, H, W] and class numbers [B, H, W], where IGNORE counts nowhere; an image without others is 0."""
        logits, targets = logits.float(), targets.long()
        terms = []
        if "ce" in self.config.loss:
            weight_K = None if self.weight_K is None else self.weight_K.to(logits.device)
            of_pixels = F.cross_entropy(
                logits, targets, weight=weight_K, ignore_index=IGNORE, reduction="none"
            )
            pixels_B = (targets != IGNORE).sum(dim=(1, 2)).clamp_min(1)
            terms.append(of_pixels.sum(dim=(1, 2)) / pixels_B)
        if "dice" in self.config.loss:
            terms.append(soft_dice_loss(logits.softmax(dim=1), targets))
        return torch.stack(terms).sum(dim=0).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """fp32 [B, K, H, W]."""
        return logits.float().softmax(dim=1)

    def predictions(self, probabilities: Tensor) -> Tensor:
        """int64 [B, H, W]: the most probable class of each pixel."""
        return probabilities.argmax(dim=1)

    def rows(self, probabilities: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What the scores need of each image, [B, K] each (:func:`mask_rows`); small enough to be gathered.

        Raises DivergedError for probabilities that are not finite, UsageError for masks that don't fit.
        """
        if not probabilities.isfinite().all():
            raise DivergedError(
                "probabilities of pixels are not finite: the model has diverged, use an earlier one"
            )
        predicted = self.predictions(probabilities)
        return mask_rows(predicted, targets, self.n_outputs, hd95=self.config.hd95)

    def judge(self, rows: Mapping[str, Tensor]) -> JudgedMasks:
        """Rows [M, K] of a whole set, as a statistic for the paired tests too."""
        return JudgedMasks(rows, self.classes)

    def score_rows(
        self,
        rows: Mapping[str, Tensor],
        *,
        resamples: int = 0,
        seed: int = 0,
        patients: Groups | None = None,
    ) -> Scores:
        """Scores of a whole set from the rows [M, K] of its images."""
        return self.judge(rows).score(resamples=resamples, seed=seed, patients=patients)

    def score(
        self,
        probabilities: Tensor,
        targets: Tensor,
        *,
        resamples: int = 0,
        seed: int = 0,
        patients: Groups | None = None,
    ) -> Scores:
        """Scores of images of one size that are in memory at once."""
        rows = self.rows(probabilities, targets)
        return self.score_rows(rows, resamples=resamples, seed=seed, patients=patients)


def soft_dice_loss(probabilities_BKHW: Tensor, targets_BHW: Tensor) -> Tensor:
    """One minus the mean of ``(2 sum p t + s) / (sum p + sum t + s)`` over all classes but the background, [B].

    Source: Milletari et al., arXiv:1606.04797, with p and t for their squares, for each image. ``targets_BHW`` int64;
    pixels of IGNORE are in no sum.
    """
    p_BkHW, targets = probabilities_BKHW[:, 1:], targets_BHW[:, None]
    # Flags, not one-hot numbers: of many classes those would be the largest tensors of a step.
    truth = targets == torch.arange(1, p_BkHW.shape[1] + 1, device=targets.device).view(-1, 1, 1)
    both = torch.where(truth, p_BkHW, 0).sum(dim=(2, 3))
    either = torch.where(targets != IGNORE, p_BkHW, 0).sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return 1 - ((2 * both + SMOOTH) / (either + SMOOTH)).mean(dim=1)
