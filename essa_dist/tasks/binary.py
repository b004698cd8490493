"""One of two classes, by one logit and binary cross-entropy: a question that is answered yes by the positive class.

One logit, not two: two have a direction that changes no probability, and what is learnt of it is left to weight decay.
Shapes: B images.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics.multi_label import Binary as JudgedBinary
from essa_dist.evaluation.metrics.scores import higher_is_better
from essa_dist.losses.labelled import binary_cross_entropy
from essa_dist.settings import Config
from essa_dist.tasks.interface import ClassCounts, WholeImages
from essa_dist.tasks.multilabel import Positive
from essa_dist.tasks.weights import positive_weights

Metric = Literal[
    "auroc",
    "auprc",
    "f1",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "sensitivity_at_95_specificity",
    "sensitivity_at_80_specificity",
    "ece",
    "brier",
    "nll",
]


class BinaryConfig(Config):
    kind: Literal["binary"] = "binary"
    """One of two classes for each image."""
    target_metric: Metric = "auroc"
    """Chooses the best checkpoint."""
    positive: str | None = None
    """The class that sensitivity, precision and f1 speak of; null: the second of the data set's classes."""
    pos_weight: Literal["none", "balanced"] | Positive = "none"
    """How many times an image of the positive class counts as much as one of the other; balanced: as often as makes up
    for their shares. Weights are scaled to a mean of 1 over the training images."""
    focal_gamma: float = Field(0.0, ge=0)
    """Focal loss: what is classified well counts less, by (1 - p)^gamma; 0: binary cross-entropy, 2: as in its paper."""


class Binary(WholeImages):
    """See :class:`~essa_dist.tasks.interface.Task`."""

    kind: ClassVar[str] = "binary"
    n_outputs = 1

    def __init__(
        self, config: BinaryConfig, classes: Sequence[str], counts: ClassCounts | None = None
    ) -> None:
        """Raises UsageError unless there are two classes, one of them ``positive``."""
        self.classes = tuple(classes)
        if len(self.classes) != 2:
            raise UsageError(
                f"task binary needs 2 classes, the labels have {len(self.classes)}: use multiclass or multilabel"
            )
        if config.positive not in (None, *self.classes):
            raise UsageError(
                f"task.positive={config.positive!r} is none of the classes: {', '.join(self.classes)}"
            )
        self.positive = 1 if config.positive is None else self.classes.index(config.positive)
        self.target_metric: str = config.target_metric
        self.higher_is_better = higher_is_better(config.target_metric)
        self.gamma = config.focal_gamma
        yes = None if counts is None else ClassCounts((counts.positive[self.positive],), counts.known[:1])
        self.weights = positive_weights(config.pos_weight, yes, (self.classes[self.positive],))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of logits [B, 1] and class numbers [B], or soft targets [B, 2]."""
        soft = targets.ndim == 2
        yes_B = targets[:, self.positive] if soft else targets == self.positive
        weights = (None, None) if self.weights is None else (w.to(logits.device) for w in self.weights)
        yes_K, no_K = weights
        return binary_cross_entropy(
            logits.float(), yes_B.float()[:, None], positive_K=yes_K, negative_K=no_K, gamma=self.gamma
        ).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """fp32 [B, 2], of both classes."""
        sign = 1 if self.positive else -1
        return torch.cat([-sign * logits, sign * logits], dim=1).float().sigmoid()

    def predictions(self, probabilities: Tensor) -> Tensor:
        """int64 [B] class numbers; the positive one from a probability of 0.5 on."""
        is_positive = probabilities[:, self.positive] >= 0.5
        return torch.where(is_positive, self.positive, 1 - self.positive)

    def judge(self, probabilities: Tensor, targets: Tensor) -> JudgedBinary:
        """Probabilities [M, 2] beside class numbers [M]; a statistic for the paired tests too.

        Rows and columns of its confusion matrix: the other class, then the positive one.
        """
        classes = self.classes if self.positive else self.classes[::-1]
        truth = (
            targets if self.positive else torch.where((targets == 0) | (targets == 1), 1 - targets, targets)
        )
        return JudgedBinary(probabilities[:, self.positive], truth, classes)
