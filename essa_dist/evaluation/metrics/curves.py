"""What a ranking is worth: AUROC, average precision, sensitivity at a specificity, of one class against the rest.

Values come from torchmetrics. For resamples the images are sorted once; a resample only changes how much each counts.
Shapes: M images, R resamples, J blocks of images that are taken together.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from essa_dist.evaluation.metrics.bootstrap import Counts, divide

SPECIFICITIES = (0.95, 0.8)
CURVES = ("auroc", "auprc", *(f"sensitivity_at_{s:.0%}_specificity".replace("%", "") for s in SPECIFICITIES))
_ROUNDING = 1e-6  # of torchmetrics' fp32 rates: 19 of 20 negatives are a specificity of 0.95


def curve_values(score_M: Tensor, positive_M: Tensor, known_M: Tensor | None = None) -> dict[str, float]:
    """``CURVES`` of scores in 0..1 for a bool truth; empty unless there are both positives and negatives."""
    import torchmetrics.functional.classification as judge

    if known_M is not None:
        score_M, positive_M = score_M[known_M], positive_M[known_M]
    if not 0 < int(positive_M.sum()) < len(positive_M):
        return {}
    truth_M = positive_M.long()
    fpr, tpr, _ = judge.binary_roc(score_M, truth_M)
    at = [tpr[fpr <= 1 - s + _ROUNDING].max() for s in SPECIFICITIES]
    areas = judge.binary_auroc(score_M, truth_M), judge.binary_average_precision(score_M, truth_M)
    return dict(zip(CURVES, map(float, (*areas, *at)), strict=True))


class Ranking:
    """``CURVES`` of one class for counts [M, R], at about two additions for each image and resample.

    Images of equal score form a group. Runs of groups without a positive are one block: they make the ROC curve
    longer but turn it nowhere, and add nothing to average precision. So there are at most 2 blocks for each positive.
    """

    def __init__(self, score_M: Tensor, positive_M: Tensor, known_M: Tensor | None = None) -> None:
        known = np.flatnonzero(np.ones(len(score_M)) if known_M is None else known_M.numpy())
        score, positive = score_M.double().numpy()[known], positive_M.numpy()[known]
        falling = np.argsort(-score, kind="stable")
        score, positive, rows = score[falling], positive[falling], known[falling]
        new_group = np.diff(score, prepend=np.inf) != 0
        group = np.cumsum(new_group) - 1
        holds_positive = np.bincount(group, weights=positive) > 0
        new_block = holds_positive.copy()
        new_block[1:] |= holds_positive[:-1]
        new_block[:1] = True
        block = (np.cumsum(new_block) - 1)[group]
        shape = (int(new_block.sum()), len(score_M))
        self._positive_JM = _chosen(block[positive], rows[positive], shape)
        self._negative_JM = _chosen(block[~positive], rows[~positive], shape)

    def __call__(self, counts_MR: Counts) -> dict[str, NDArray[np.float64]]:
        """Each of ``CURVES``, [R]; NaN where a resample has no positive or no negative."""
        pos_JR, neg_JR = self._positive_JM @ counts_MR, self._negative_JM @ counts_MR
        above_pos_JR, above_neg_JR = pos_JR.cumsum(axis=0), neg_JR.cumsum(axis=0)
        n_pos_R, n_neg_R = pos_JR.sum(axis=0), neg_JR.sum(axis=0)
        won_R = (pos_JR * (n_neg_R - above_neg_JR + neg_JR / 2)).sum(
            axis=0
        )  # ties count half: Mann-Whitney's U
        precision_JR = above_pos_JR / np.maximum(above_pos_JR + above_neg_JR, 1)
        both_R = np.where((n_pos_R > 0) & (n_neg_R > 0), 1.0, np.nan)
        found = [divide(won_R, n_pos_R * n_neg_R), divide((pos_JR * precision_JR).sum(axis=0), n_pos_R)]
        for s in SPECIFICITIES:
            allowed = above_neg_JR <= (1 - s + _ROUNDING) * n_neg_R
            found.append(divide(np.where(allowed, above_pos_JR, 0).max(axis=0, initial=0), n_pos_R))
        return {name: value_R * both_R for name, value_R in zip(CURVES, found, strict=True)}


def _chosen(block: NDArray[np.int64], rows: NDArray[np.int64], shape: tuple[int, int]) -> csr_array:
    """[J, M] that adds the counts of the images of each block."""
    return csr_array((np.ones(len(rows)), (block, rows)), shape=shape)


def rank_all(score_MK: Tensor, positive_MK: Tensor, known_MK: Tensor | None = None) -> list[Ranking]:
    """A ranking for each class."""
    known = [None] * score_MK.shape[1] if known_MK is None else list(torch.unbind(known_MK, dim=1))
    pairs = zip(score_MK.unbind(dim=1), positive_MK.unbind(dim=1), known, strict=True)
    return [Ranking(score_M, positive_M, known_M) for score_M, positive_M, known_M in pairs]
