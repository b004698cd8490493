"""Predictions that have been judged: what all kinds of classification have in common.

Shapes: M images, K classes or labels, R resamples.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.errors import DivergedError, UsageError
from essa_dist.evaluation.metrics.bootstrap import Counts, intervals
from essa_dist.evaluation.metrics.curves import CURVES
from essa_dist.evaluation.metrics.rates import Floats, Rates, over_classes
from essa_dist.evaluation.metrics.scores import Scores

Groups = NDArray[np.integer[Any]]


class Judged(ABC):
    """``score()`` gives its Scores; called with counts it is a ``Statistic``, to be resampled alone or in pairs."""

    classes: tuple[str, ...]
    n: int
    """Images."""
    confusion: list[list[int]] | None = None

    @abstractmethod
    def values(self) -> dict[str, float]:
        """Every metric; NaN where these images can't give it."""

    @abstractmethod
    def per_class(self) -> dict[str, dict[str, float]]:
        """Class to what is known of it alone; NaN where these images can't give it."""

    @abstractmethod
    def __call__(self, counts_MR: Counts) -> dict[str, Floats]:
        """``values`` where each image counts so many times, [R] each."""

    def score(self, *, resamples: int = 0, seed: int = 0, patients: Groups | None = None) -> Scores:
        """Scores without NaN; with intervals where ``resamples`` is above 0, of whole ``patients`` [M] where given."""
        values, per_class = defined(self.values()), self.per_class()
        bounds = {}
        if resamples:
            bounds = intervals(self, self.n, resamples=resamples, seed=seed, groups=patients)
        return Scores(
            values=values,
            n=self.n,
            intervals={metric: bounds[metric] for metric in bounds if metric in values},
            per_class={name: defined(of_class) for name, of_class in per_class.items()},
            confusion=self.confusion,
            left_out=tuple(name for name, of_class in per_class.items() if CURVES[0] not in of_class),
        )


def defined(values: Mapping[str, float]) -> dict[str, float]:
    """Without what is NaN."""
    return {name: value for name, value in values.items() if not math.isnan(value)}


def by_class(
    classes: Sequence[str], members_K: Sequence[int], rates_K: Rates, curves: Sequence[dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Class to its images (``n``), its curves and its rates."""
    return {
        name: {"n": members_K[k], **curves[k]}
        | {"sensitivity": float(rates_K.sensitivity[k]), "specificity": float(rates_K.specificity[k])}
        | {"f1": float(rates_K.f1[k])}
        for k, name in enumerate(classes)
    }


def mean_curves(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each of ``CURVES``, the mean over the classes that have it: one value, or [R]; NaN where none has."""
    return {name: over_classes(np.array([of.get(name, np.nan) for of in curves])) for name in CURVES}


def check_predictions(
    probabilities_MK: Tensor, truth: Tensor, shape: tuple[int, ...], classes: Sequence[str], allowed: range
) -> None:
    """Raise UsageError unless there is a probability for each class and an allowed truth; DivergedError for NaN."""
    n = len(truth)
    if n == 0:
        raise UsageError("there are no images to judge: give a split that has some")
    if probabilities_MK.shape != (n, len(classes)) or truth.shape != shape:
        raise UsageError(
            f"probabilities {[*probabilities_MK.shape]} and labels {[*truth.shape]} are not those of {n} images and"
            f" {len(classes)} classes"
        )
    wrong = ~torch.isin(truth, torch.tensor(allowed, dtype=truth.dtype, device=truth.device))
    if wrong.any():
        raise UsageError(
            f"{int(wrong.sum())} labels, the first {truth[wrong][0].item():g}, are outside {allowed[0]}..{allowed[-1]}:"
            " judge labelled images, by the classes of the model"
        )
    bad = int((~probabilities_MK.isfinite().all(dim=1)).sum())
    if bad:
        raise DivergedError(
            f"probabilities of {bad} of {n} images are not finite: the weights have diverged, use an earlier checkpoint"
        )
