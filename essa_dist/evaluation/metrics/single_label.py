"""Metrics where each image has one of K classes, by the probabilities that a model gives them.

Shapes: M images, K classes, R resamples.
"""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from essa_dist.evaluation.metrics.bootstrap import Counts, divide, means
from essa_dist.evaluation.metrics.calibration import BinnedCalibration, brier, calibration_error, surprise
from essa_dist.evaluation.metrics.curves import curve_values, rank_all
from essa_dist.evaluation.metrics.judged import Judged, by_class, check_predictions, mean_curves
from essa_dist.evaluation.metrics.rates import Floats, of_grades, one_against_rest, over_classes


class SingleLabel(Judged):
    """A class that gives a metric no value is left out of its mean; ``left_out`` names those that no image shows."""

    confusion: list[list[int]]

    def __init__(
        self,
        probabilities_MK: Tensor,
        truth_M: Tensor,
        classes: Sequence[str],
        *,
        predicted_M: Tensor | None = None,
        grades: Sequence[int] | None = None,
    ) -> None:
        """``predicted_M``: class numbers, where they aren't the most probable ones; ``grades``: rank of each class,
        where classes are ordered. Raises UsageError for shapes or labels that don't fit, DivergedError for NaN.
        """
        self.classes, self.n, n_classes = tuple(classes), len(truth_M), len(classes)
        check_predictions(probabilities_MK, truth_M, (self.n,), classes, range(n_classes))
        self._p_MK, truth_M = probabilities_MK.double().cpu(), truth_M.long().cpu()
        self._is_MK = F.one_hot(truth_M, n_classes).bool()
        self._grades = None if grades is None else np.asarray(grades)
        confidence_M, likeliest_M = self._p_MK.max(dim=1)
        self._confidence = confidence_M, likeliest_M == truth_M
        predicted_M = likeliest_M if predicted_M is None else predicted_M.long().cpu()
        cell_M = (truth_M * n_classes + predicted_M).numpy()
        place = (cell_M, np.arange(self.n))
        self._cells = csr_array((np.ones(self.n), place), shape=(n_classes**2, self.n))
        self._confusion_KK = self._confusions(np.ones((self.n, 1)))[..., 0]
        self.confusion = self._confusion_KK.astype(int).tolist()
        likelihood_M = self._p_MK.gather(1, truth_M[:, None])[:, 0]
        each = {"brier": brier(self._p_MK, self._is_MK), "nll": surprise(likelihood_M)}
        self._each = {name: value_M.numpy() for name, value_M in each.items()}
        self._curves = [curve_values(self._p_MK[:, k], self._is_MK[:, k]) for k in range(n_classes)]
        self._rankings = rank_all(self._p_MK, self._is_MK)
        self._calibration = BinnedCalibration(*self._confidence)

    def values(self) -> dict[str, float]:
        found = self._decided(self._confusion_KK) | mean_curves(self._curves)
        found |= {name: value_M.mean() for name, value_M in self._each.items()}
        return {name: float(value) for name, value in found.items()} | {
            "ece": calibration_error(*self._confidence)
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        members_K = self._is_MK.sum(dim=0).tolist()
        return by_class(self.classes, members_K, one_against_rest(self._confusion_KK), self._curves)

    def __call__(self, counts_MR: Counts) -> dict[str, Floats]:
        return (
            self._decided(self._confusions(counts_MR))
            | mean_curves([ranking(counts_MR) for ranking in self._rankings])
            | means(self._each)(counts_MR)
            | {"ece": self._calibration(counts_MR)}
        )

    def _confusions(self, counts_MR: Counts) -> Floats:
        k = len(self.classes)
        cells: Floats = self._cells @ counts_MR
        return cells.reshape(k, k, -1)

    def _decided(self, confusion_KK: Floats) -> dict[str, Floats]:
        """Metrics of the predicted classes, from a confusion matrix [K, K, ...]."""
        of_class = one_against_rest(confusion_KK)
        found = {
            "accuracy": divide(np.einsum("kk...->...", confusion_KK), confusion_KK.sum(axis=(0, 1))),
            "balanced_accuracy": over_classes(of_class.sensitivity),
            "f1_macro": over_classes(of_class.f1),
            "specificity": over_classes(of_class.specificity),
        }
        if self._grades is not None:
            found["quadratic_kappa"], found["mae"] = of_grades(confusion_KK, self._grades)
        return found
