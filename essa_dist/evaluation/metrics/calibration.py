"""Whether probabilities mean what they say: expected calibration error (ECE), Brier score, negative log-likelihood.

Source: Naeini et al. 2015 and Guo et al. 2017 (arXiv:1706.04599) for ECE, here with 15 bins of equal width and the l1
norm. Shapes: M images, R resamples.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from essa_dist.evaluation.metrics.bootstrap import Counts, divide

BINS = 15
_LEAST = torch.finfo(torch.float32).eps  # a probability of 0 would make one image's log-likelihood infinite


def calibration_error(confidence_M: Tensor, right_M: Tensor) -> float:
    """Mean over the bins, by their images, of abs(share that is right - mean confidence)."""
    from torchmetrics.functional.classification import binary_calibration_error

    return float(binary_calibration_error(confidence_M, right_M.long(), n_bins=BINS, norm="l1"))


class BinnedCalibration:
    """``calibration_error`` for counts [M, R]; ``known_M``: the images that count."""

    def __init__(self, confidence_M: Tensor, right_M: Tensor, known_M: Tensor | None = None) -> None:
        rows = np.flatnonzero(np.ones(len(confidence_M)) if known_M is None else known_M.numpy())
        confidence, right = confidence_M[rows], right_M[rows].to(confidence_M)
        edges = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype)
        bins = torch.bucketize(confidence, edges, right=True).numpy() - 1
        shape = (
            BINS + 1,
            len(confidence_M),
        )  # the last bin is that of a confidence of exactly 1, as in torchmetrics
        self._excess_BM = csr_array(((right - confidence).double().numpy(), (bins, rows)), shape=shape)
        self._known_M = np.zeros(len(confidence_M))
        self._known_M[rows] = 1

    def __call__(self, counts_MR: Counts) -> NDArray[np.float64]:
        excess_R: NDArray[np.float64] = np.abs(self._excess_BM @ counts_MR).sum(axis=0)
        return divide(excess_R, self._known_M @ counts_MR)


def brier(probability_MK: Tensor, truth_MK: Tensor) -> Tensor:
    """Of each image the sum over the classes of (p - y)², [M]; in 0..2."""
    return (probability_MK - truth_MK.to(probability_MK)).square().sum(dim=1)


def surprise(probability_M: Tensor) -> Tensor:
    """-log of the probability that was given to what is true, [M]."""
    return -probability_M.clamp_min(_LEAST).log()
