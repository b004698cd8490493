"""Metrics of counted decisions, for one set or for R resamples at once.

Shapes: K classes; ... nothing, or R resamples.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.evaluation.metrics.bootstrap import divide

Floats = NDArray[np.float64]


class Rates(NamedTuple):
    """Of each yes/no question, NaN where its denominator is 0; any shape."""

    sensitivity: Floats
    specificity: Floats
    f1: Floats  # 2 TP / (2 TP + FP + FN)
    accuracy: Floats


def rates(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Rates:
    """From true and false positives and negatives."""
    return Rates(
        sensitivity=divide(tp, tp + fn),
        specificity=divide(tn, tn + fp),
        f1=divide(2 * tp, 2 * tp + fp + fn),
        accuracy=divide(tp + tn, tp + fp + fn + tn),
    )


def one_against_rest(confusion_KK: Floats) -> Rates:
    """Rates of each class, [K, ...], from a confusion matrix [K, K, ...] whose rows are the truth."""
    tp = np.moveaxis(confusion_KK.diagonal(), -1, 0)
    truth, guess = confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)
    return rates(tp, guess - tp, truth - tp, confusion_KK.sum(axis=(0, 1)) - truth - guess + tp)


def over_classes(value_K: Floats) -> Floats:
    """Mean over the first axis of what is not NaN: classes without a value are left out; NaN where none has one."""
    return divide(np.nansum(value_K, axis=0), (~np.isnan(value_K)).sum(axis=0))


def of_grades(confusion_KK: Floats, grade_K: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Quadratic kappa and mean absolute error in grades, from a confusion matrix [K, K, ...].

    Kappa: 1 - sum(w O) / sum(w E), w the squared distance of grades, O observed, E expected from the margins (Cohen
    1968); NaN where truth and prediction are one and the same class throughout.
    """
    distance_KK = np.abs(grade_K[:, None] - grade_K[None, :]).astype(np.float64)
    total = confusion_KK.sum(axis=(0, 1))
    truth, guess = confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)
    observed = np.tensordot(distance_KK**2, confusion_KK, axes=2)
    expected = np.einsum("ij,i...,j...->...", distance_KK**2, truth, guess)
    kappa = 1 - divide(observed * total, expected)
    return kappa, divide(np.tensordot(distance_KK, confusion_KK, axes=2), total)
