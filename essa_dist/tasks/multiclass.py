"""One class of several for each image, by cross-entropy.

Shapes: B images, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics.scores import higher_is_better
from essa_dist.evaluation.metrics.single_label import SingleLabel
from essa_dist.losses.labelled import cross_entropy
from essa_dist.settings import Config
from essa_dist.tasks.grades import grades_of
from essa_dist.tasks.interface import ClassCounts, WholeImages
from essa_dist.tasks.weights import Weights, class_weights

Metric = Literal[
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "specificity",
    "auroc",
    "auprc",
    "sensitivity_at_95_specificity",
    "sensitivity_at_80_specificity",
    "quadratic_kappa",
    "mae",
    "ece",
    "brier",
    "nll",
]

OF_GRADES = ("quadratic_kappa", "mae")


class ClassesConfig(Config):
    """What multi-class and ordinal tasks have in common."""

    kind: Literal["multiclass", "ordinal"]
    """Which of them."""
    target_metric: Metric
    """Chooses the best checkpoint."""
    class_weights: Weights = "none"
    """Weight of each class in the loss, in the order of the classes; balanced: by the inverse of its share. They are
    scaled to a mean of 1 over the training images."""
    focal_gamma: float = Field(0.0, ge=0)
    """Focal loss: images that are classified well count less, by (1 - p)^gamma; 0: cross-entropy, 2: as in its paper."""
    order: tuple[str, ...] | None = None
    """Class names from the lowest grade to the highest; null: by number if the names are numbers."""


class MulticlassConfig(ClassesConfig):
    kind: Literal["multiclass"] = "multiclass"
    """One class of several for each image."""
    target_metric: Metric = "balanced_accuracy"
    """Chooses the best checkpoint; quadratic_kappa and mae need classes that are grades (see order)."""


class Multiclass(WholeImages):
    """See :class:`~essa_dist.tasks.interface.Task`."""

    kind: ClassVar[str] = "multiclass"

    def __init__(
        self, config: MulticlassConfig, classes: Sequence[str], counts: ClassCounts | None = None
    ) -> None:
        """Raises UsageError for less than 2 classes, and for settings that don't fit them."""
        self._set_up(config, classes, counts)

    def _set_up(self, config: ClassesConfig, classes: Sequence[str], counts: ClassCounts | None) -> None:
        if len(classes) < 2:
            raise UsageError(f"task {self.kind} needs at least 2 classes, the labels have {len(classes)}")
        self.classes, self.n_outputs = tuple(classes), len(classes)
        self.gamma = config.focal_gamma
        self.weight_K = class_weights(config.class_weights, counts, self.classes)
        self.grades = grades_of(self.classes, config.order)
        self.target_metric: str = config.target_metric
        self.higher_is_better = higher_is_better(self.target_metric)
        if self.target_metric in OF_GRADES and self.grades is None:
            raise UsageError(
                f"task.target_metric={self.target_metric} needs classes that are grades, and these are no numbers: name them"
                f" from the lowest to the highest, as task.order=[{', '.join(self.classes)}]"
            )

    def log_probabilities(self, logits_BL: Tensor) -> Tensor:
        """fp32 [B, K]."""
        return logits_BL.float().log_softmax(dim=1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of logits [B, L] and class numbers [B] or soft targets [B, K]."""
        weight_K = None if self.weight_K is None else self.weight_K.to(logits.device)
        return cross_entropy(
            self.log_probabilities(logits),
            targets,
            weight_K=weight_K,
            gamma=self.gamma,
        ).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """fp32 [B, K]."""
        return self.log_probabilities(logits).exp()

    def predictions(self, probabilities: Tensor) -> Tensor:
        """int64 [B]: the most probable class."""
        return probabilities.argmax(dim=1)

    def judge(self, probabilities: Tensor, targets: Tensor) -> SingleLabel:
        """Probabilities [M, K] beside class numbers [M]; a statistic for the paired tests too."""
        predicted_M = self.predictions(probabilities)
        return SingleLabel(probabilities, targets, self.classes, predicted_M=predicted_M, grades=self.grades)
