"""Any number of labels for each image, by binary cross-entropy; and the one question that is left of two classes.

Shapes: B images, K labels.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics.multi_label import THRESHOLD, MultiLabel
from essa_dist.evaluation.metrics.scores import higher_is_better
from essa_dist.losses.labelled import binary_cross_entropy
from essa_dist.settings import Config
from essa_dist.tasks.interface import ClassCounts, WholeImages
from essa_dist.tasks.weights import Weights, positive_weights

Metric = Literal[
    "auroc",
    "auprc",
    "f1_macro",
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
Positive = Annotated[float, Field(gt=0)]


class MultilabelConfig(Config):
    kind: Literal["multilabel"] = "multilabel"
    """Any number of labels for each image; what is not known of an image is left out of loss and metrics."""
    target_metric: Metric = "auroc"
    """Chooses the best checkpoint: mean over the labels that the images show and lack."""
    pos_weight: Weights | Positive = "none"
    """How many times a yes counts as much as a no: one number, or one for each label; balanced: as often as makes up for
    their shares. Weights are scaled to a mean of 1 over the training images."""
    focal_gamma: float = Field(0.0, ge=0)
    """Focal loss: what is classified well counts less, by (1 - p)^gamma; 0: binary cross-entropy, 2: as in its paper."""


class Multilabel(WholeImages):
    """See :class:`~essa_dist.tasks.interface.Task`."""

    kind: ClassVar[str] = "multilabel"

    def __init__(
        self, config: MultilabelConfig, classes: Sequence[str], counts: ClassCounts | None = None
    ) -> None:
        """Raises UsageError without classes, and for weights that don't fit them."""
        if not classes:
            raise UsageError("task multilabel needs at least 1 label: pack images with label columns")
        self.classes, self.n_outputs = tuple(classes), len(classes)
        self.target_metric: str = config.target_metric
        self.higher_is_better = higher_is_better(config.target_metric)
        self.gamma = config.focal_gamma
        self.weights = positive_weights(config.pos_weight, counts, self.classes)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of logits [B, K] and targets [B, K]: 0..1, or -1 where not known. Mean over images of that over known labels."""
        yes_K, no_K = (None, None) if self.weights is None else (w.to(logits.device) for w in self.weights)
        return binary_cross_entropy(
            logits.float(), targets.float(), positive_K=yes_K, negative_K=no_K, gamma=self.gamma
        ).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """fp32 [B, K], each label's own."""
        return logits.float().sigmoid()

    def predictions(self, probabilities: Tensor) -> Tensor:
        """int64 [B, K]: 1 where the label is given."""
        return (probabilities >= THRESHOLD).long()

    def judge(self, probabilities: Tensor, targets: Tensor) -> MultiLabel:
        """Probabilities [M, K] beside 1, 0 and -1 [M, K]; a statistic for the paired tests too."""
        return MultiLabel(probabilities, targets, self.classes)
