"""Metrics of yes/no questions: any number of labels for each image, or one of two classes.

Shapes: M images, K labels, R resamples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from essa_dist.evaluation.metrics.bootstrap import Counts, divide
from essa_dist.evaluation.metrics.calibration import BinnedCalibration, calibration_error, surprise
from essa_dist.evaluation.metrics.curves import curve_values, rank_all
from essa_dist.evaluation.metrics.judged import Judged, by_class, check_predictions, mean_curves
from essa_dist.evaluation.metrics.rates import Floats, Rates, over_classes, rates

THRESHOLD = 0.5  # a label is given from this probability on


class MultiLabel(Judged):
    """Means over labels of what each gives by the images of which it is known; labels without a value are left out."""

    def __init__(self, probabilities_MK: Tensor, truth_MK: Tensor, labels: Sequence[str]) -> None:
        """``truth_MK``: 1, 0 or -1 (not known). Raises UsageError for other values or shapes, DivergedError for NaN."""
        self.classes, self.n = tuple(labels), len(truth_MK)
        check_predictions(probabilities_MK, truth_MK, (self.n, len(labels)), labels, range(-1, 2))
        p_MK, truth_MK = probabilities_MK.double().cpu(), truth_MK.cpu()
        yes_MK, known_MK = truth_MK == 1, truth_MK >= 0
        self._p_MK, self._yes_MK, self._known_MK = p_MK, yes_MK, known_MK
        given_MK = p_MK >= THRESHOLD
        no_MK, not_given_MK = known_MK & ~yes_MK, ~given_MK
        cells = (yes_MK & given_MK, no_MK & given_MK, yes_MK & not_given_MK, no_MK & not_given_MK)
        self._cells = [_columns(cell_MK) for cell_MK in cells]  # TP, FP, FN, TN, each [K, M]
        likelihood_MK = torch.where(yes_MK, p_MK, 1 - p_MK)
        each = {"brier": (p_MK - yes_MK.double()).square(), "nll": surprise(likelihood_MK)}
        self._each = {name: _columns(value_MK * known_MK) for name, value_MK in each.items()}
        self._rankings = rank_all(p_MK, yes_MK, known_MK)
        self._calibrations = [BinnedCalibration(*label) for label in self._labels()]
        self._curves = [curve_values(*label) for label in self._labels()]

    def values(self) -> dict[str, float]:
        errors = [calibration_error(p_M[known_M], yes_M[known_M]) for p_M, yes_M, known_M in self._labels()]
        found = self._additive(np.ones((self.n, 1))) | mean_curves(self._curves)
        return {name: float(np.squeeze(value)) for name, value in found.items()} | {
            "ece": float(over_classes(np.array(errors)))
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        rates_K = Rates(*(rate_K1[:, 0] for rate_K1 in self._rates(np.ones((self.n, 1)))))
        return by_class(self.classes, self._yes_MK.sum(dim=0).tolist(), rates_K, self._curves)

    def __call__(self, counts_MR: Counts) -> dict[str, Floats]:
        errors = np.stack([calibration(counts_MR) for calibration in self._calibrations])
        curves = mean_curves([ranking(counts_MR) for ranking in self._rankings])
        return self._additive(counts_MR) | curves | {"ece": over_classes(errors)}

    def _labels(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Probability, truth and whether it is known, [M] each, label by label."""
        return list(zip(self._p_MK.T, self._yes_MK.T, self._known_MK.T, strict=True))

    def _rates(self, counts_MR: Counts) -> Rates:
        return rates(*(cell_KM @ counts_MR for cell_KM in self._cells))

    def _additive(self, counts_MR: Counts) -> dict[str, Floats]:
        """Metrics that are made of sums over images."""
        of_label, known_KR = self._rates(counts_MR), _columns(self._known_MK) @ counts_MR
        return {
            "accuracy": over_classes(of_label.accuracy),
            "balanced_accuracy": over_classes((of_label.sensitivity + of_label.specificity) / 2),
            "sensitivity": over_classes(of_label.sensitivity),
            "specificity": over_classes(of_label.specificity),
            "f1_macro": over_classes(of_label.f1),
        } | {
            name: over_classes(divide(value_KM @ counts_MR, known_KR))
            for name, value_KM in self._each.items()
        }


class Binary(MultiLabel):
    """One of two classes, as the question whether it is the second: ``f1`` and ``sensitivity`` speak of that one."""

    def __init__(self, probability_M: Tensor, truth_M: Tensor, classes: Sequence[str]) -> None:
        """``probability_M`` of the second of ``classes``; ``truth_M`` 0 or 1. Raises as ``MultiLabel``."""
        check_predictions(probability_M[:, None], truth_M, (len(truth_M),), classes[1:], range(2))
        super().__init__(probability_M[:, None], truth_M[:, None], classes[1:])
        tp, fp, fn, tn = (int(cell_1M.sum()) for cell_1M in self._cells)
        self.confusion = [[tn, fp], [fn, tp]]

    def _additive(self, counts_MR: Counts) -> dict[str, Floats]:
        found = super()._additive(counts_MR)
        return {"f1" if name == "f1_macro" else name: value for name, value in found.items()}


def _columns(x_MK: Tensor) -> Floats:
    """[K, M] fp64."""
    return np.ascontiguousarray(x_MK.double().numpy().T)
