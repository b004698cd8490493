"""What a protocol read off at one of its settings: its values, and what a comparison with another model needs.

A reading is resampled by calling its ``statistic`` with counts of the test images (see ``metrics.bootstrap``).
Shapes: M test samples, K classes, D draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.fewshot import mean_and_interval
from essa_dist.evaluation.metrics import MultiLabel, SingleLabel, classification_metrics
from essa_dist.evaluation.metrics.bootstrap import Counts, Statistic, intervals, means
from essa_dist.evaluation.metrics.rates import Floats, over_classes

RESAMPLES = 1000


@dataclass(frozen=True)
class Reading(ABC):
    """Outputs of one model on one test set at one setting."""

    setting: dict[str, Any]
    names: tuple[str, ...]
    """Of classes; of ``Ranked``, of metrics."""
    outputs: Tensor
    targets: Tensor
    """[M] class indices, or [M, K] of 0, 1 and -1 (not known)."""
    ordered: bool = False
    """Whether the classes are grades, in their order."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """The metric that the interval of ``result`` is of."""

    @abstractmethod
    def result(self, *, seed: int) -> dict[str, Any]:
        """Values in the types that JSON knows, with a 95 % ``interval`` of the headline."""

    @abstractmethod
    def statistic(self) -> Statistic:
        """Every metric, for resampled test images."""


class Classified(Reading):
    """Outputs [M, K]: probabilities of classes."""

    @property
    def headline(self) -> str:
        return "balanced_accuracy" if self.targets.ndim == 1 else "auroc"

    def result(self, *, seed: int) -> dict[str, Any]:
        """Of one class an image: accuracy, balanced_accuracy, confusion; of several: all metrics, and those per class."""
        if self.targets.ndim == 1:
            found = classification_metrics(
                self.outputs.argmax(dim=1), self.targets, num_classes=len(self.names), seed=seed
            )
            return found._asdict()
        scores = self._judged().score(resamples=RESAMPLES, seed=seed)
        scores.value(self.headline)  # told in words where no class has both kinds of images
        return (
            scores.values
            | {"interval": list(scores.intervals[self.headline])}
            | {"per_class": scores.per_class, "left_out": list(scores.left_out)}
        )

    def statistic(self) -> Statistic:
        return self._judged()

    def _judged(self) -> MultiLabel | SingleLabel:
        if self.targets.ndim == 2:
            return MultiLabel(self.outputs, self.targets, self.names)
        grades = range(len(self.names)) if self.ordered else None
        return SingleLabel(self.outputs, self.targets, self.names, grades=grades)


class Drawn(Reading):
    """Outputs [D, M]: classes predicted after each of many random draws from the bank."""

    headline = "balanced_accuracy"

    def result(self, *, seed: int) -> dict[str, Any]:
        """Means over draws, with their deviation and the 95 % t-interval of the mean of balanced accuracy."""
        once = np.ones((len(self.targets), 1))
        draws = [self._statistic(right_M)(once) for right_M in self._right()]
        accuracy, _, _ = mean_and_interval(np.concatenate([draw["accuracy"] for draw in draws]))
        mean, deviation, interval = mean_and_interval(np.concatenate([draw[self.headline] for draw in draws]))
        return {"accuracy": accuracy, self.headline: mean, "std": deviation, "interval": list(interval)}

    def statistic(self) -> Statistic:
        return self._statistic(self._right().mean(axis=0))

    def _right(self) -> Floats:
        right_DM: Floats = (self.outputs == self.targets).double().numpy()
        return right_DM

    def _statistic(self, right_M: Floats) -> Statistic:
        """Of how often each image was right: linear in it, so the mean over draws is that of the mean."""
        truth_M = self.targets.numpy()
        of_class = {
            str(label): np.where(truth_M == label, right_M, np.nan) for label in np.unique(truth_M).tolist()
        }
        of_images = means({"all": right_M, **of_class})

        def statistic(counts_MR: Counts) -> dict[str, Floats]:
            found = of_images(counts_MR)
            recall = over_classes(np.stack([found[label] for label in of_class]))
            return {"accuracy": found["all"], self.headline: recall}

        return statistic


class Ranked(Reading):
    """Outputs [number of metrics, M]: values of each query; NaN where there was nothing to be found."""

    headline = "map"

    def result(self, *, seed: int) -> dict[str, Any]:
        """Means over the queries that have something to be found, and ``n_queries``, their number.

        Raises UsageError where there is no such query.
        """
        known = self.outputs[:, ~self.outputs[0].isnan()]
        if not known.shape[1]:
            raise UsageError(
                "the bank holds no image of a test image's class (and of another patient): nothing can be retrieved, "
                "choose another bank"
            )
        bounds = intervals(self.statistic(), self.outputs.shape[1], resamples=RESAMPLES, seed=seed)
        values = {name: float(row.mean()) for name, row in zip(self.names, known, strict=True)}
        return values | {"interval": list(bounds[self.headline]), "n_queries": known.shape[1]}

    def statistic(self) -> Statistic:
        return means({name: row.numpy() for name, row in zip(self.names, self.outputs, strict=True)})


KINDS: dict[str, type[Reading]] = {kind.__name__.lower(): kind for kind in (Classified, Drawn, Ranked)}
"""Under which a reading is kept."""


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """Of several seeds of one model on the same images."""

    def statistic(counts_MR: Counts) -> dict[str, Floats]:
        found = [one(counts_MR) for one in statistics]
        return {metric: np.mean([one[metric] for one in found], axis=0) for metric in found[0]}

    return statistic
