"""Metrics of predicted classes alone, as k-NN and the linear probe give them, and their uncertainty.

Shapes: M test samples, K classes, R bootstrap resamples.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Metrics(NamedTuple):
    """What one protocol measured; all shares in 0..1."""

    accuracy: float
    balanced_accuracy: float  # mean recall of the classes that the test set holds
    interval: list[float]  # [low, high], the 95 % percentile bootstrap of balanced_accuracy
    confusion: list[list[int]]  # [K][K], rows are the truth, columns the prediction


def classification_metrics(
    predicted_M: Tensor, truth_M: Tensor, *, num_classes: int, seed: int = 0
) -> Metrics:
    """Metrics of int64 class indices in 0..K-1, K at least 2; a class may be absent from either tensor."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    confusion_KK = multiclass_confusion_matrix(predicted_M, truth_M, num_classes).double()
    right_K, members_K = confusion_KK.diagonal(), confusion_KK.sum(dim=1)
    recall_K = (right_K / members_K)[
        members_K > 0
    ]  # torchmetrics' macro average counts predicted classes too
    return Metrics(
        accuracy=float(right_K.sum() / members_K.sum()),
        balanced_accuracy=float(recall_K.mean()),
        interval=list(bootstrap_interval(confusion_KK.long().numpy(), seed=seed)),
        confusion=confusion_KK.long().tolist(),
    )


def bootstrap_interval(
    confusion_KK: NDArray[np.int64], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of balanced accuracy, the test samples drawn with replacement.

    Balanced accuracy sees a sample only as (its class, right or wrong). So drawing M samples is drawing
    2K counts from a multinomial: the same distribution, at a cost that M does not enter. Classes are not
    held at their share; a class that a resample has lost is left out of that resample's mean.
    """
    right_K = confusion_KK.diagonal()
    cells_2K = np.concatenate([right_K, confusion_KK.sum(axis=1) - right_K])
    drawn = np.random.default_rng(seed).multinomial(cells_2K.sum(), cells_2K / cells_2K.sum(), size=resamples)
    right_RK, wrong_RK = np.split(drawn, 2, axis=1)
    seen_RK = right_RK + wrong_RK
    recall_RK = np.divide(right_RK, seen_RK, out=np.zeros(seen_RK.shape), where=seen_RK > 0)
    balanced_R = recall_RK.sum(axis=1) / (seen_RK > 0).sum(axis=1)
    low, high = np.quantile(balanced_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
