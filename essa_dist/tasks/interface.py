"""What every labelled task offers.

Shapes: B images of a batch, M of a set, K classes, L outputs of the head.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from essa_dist.evaluation.metrics.judged import Groups, Judged
from essa_dist.evaluation.metrics.scores import Scores


class Task(Protocol):
    """Made as ``Task(config, classes, counts)``: its Config, the names of the classes, and how often the training images
    show each. UsageError for settings that don't fit the classes, and without counts for a loss that needs them.
    """

    kind: ClassVar[str]
    """Its name in ``TASKS``."""
    classes: tuple[str, ...]
    n_outputs: int
    """Width of the head."""
    target_metric: str
    """Chooses the best checkpoint; a key of the scores' ``values``."""
    higher_is_better: bool
    """Of ``target_metric``."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the images of the batch of a term for each, so equal micro-batches average to the whole batch."""
        ...

    def probabilities(self, logits: Tensor) -> Tensor:
        """fp32; a class for each column (of segmentation: each plane)."""
        ...

    def predictions(self, probabilities: Tensor) -> Tensor:
        """int64 class numbers; of multi-label 0 or 1 for each class."""
        ...

    def score(
        self,
        probabilities: Tensor,
        targets: Tensor,
        *,
        resamples: int = 0,
        seed: int = 0,
        patients: Groups | None = None,
    ) -> Scores:
        """All metrics of M images, with bootstrap intervals where ``resamples`` is above 0 (of whole patients if given).

        Raises UsageError for targets that are no labels of this task, DivergedError for probabilities that are not
        finite.
        """
        ...


class WholeImages(ABC):
    """What tasks have in common whose targets are of images, not of pixels."""

    @abstractmethod
    def judge(self, probabilities: Tensor, targets: Tensor) -> Judged:
        """Probabilities [M, K] beside their targets: to be scored, or resampled beside another model's."""

    def score(
        self,
        probabilities: Tensor,
        targets: Tensor,
        *,
        resamples: int = 0,
        seed: int = 0,
        patients: Groups | None = None,
    ) -> Scores:
        """See :class:`Task`."""
        return self.judge(probabilities, targets).score(resamples=resamples, seed=seed, patients=patients)


class ClassCounts(NamedTuple):
    """How often the training images show each class, and of how many images that is known."""

    positive: tuple[int, ...]
    """[K]"""
    known: tuple[int, ...]
    """[K]; all images where each has one class."""
