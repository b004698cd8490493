"""Whether one model is better than another on the same images, or over the same seeds.

Shapes: M images, R resamples, S sets of scores, P positives, N negatives.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics.bootstrap import Statistic, resampled


class Difference(NamedTuple):
    """One model's value minus the other's."""

    difference: float
    low: float
    """Of the 95 % interval."""
    high: float
    p: float
    """Two-sided, for no difference."""


def paired_bootstrap(
    one: Statistic,
    other: Statistic,
    n_images: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    patients: NDArray[np.integer] | None = None,
) -> dict[str, Difference]:
    """Each metric that both have: both see the same resamples, so what is hard for both cancels.

    p is twice the smaller share of differences on one side of 0, the set itself counted as one more resample: with 1000
    resamples it can't be below 0.002. Metrics that the set can't give are left out.
    """
    whole = np.ones((n_images, 1))
    drawn = [
        resampled(model, n_images, resamples=resamples, seed=seed, groups=patients) for model in (one, other)
    ]
    values_one, values_other = one(whole), other(whole)
    found = {}
    for metric in values_one.keys() & values_other.keys():
        gap_R = drawn[0][metric] - drawn[1][metric]
        gap_R = gap_R[~np.isnan(gap_R)]
        gap = float((values_one[metric] - values_other[metric])[0])
        if np.isnan(gap) or not len(gap_R):
            continue
        low, high = np.quantile(gap_R, [0.025, 0.975])
        below, above = ((1 + side.sum()) / (1 + len(gap_R)) for side in (gap_R <= 0, gap_R >= 0))
        found[metric] = Difference(gap, float(low), float(high), min(1.0, 2 * float(min(below, above))))
    return {metric: found[metric] for metric in values_one if metric in found}


def mcnemar(right_one_M: NDArray[np.bool_], right_other_M: NDArray[np.bool_]) -> float:
    """Two-sided p of equal accuracy, exact: the images that only one gets right are a fair coin's (McNemar 1947)."""
    from scipy.stats import binomtest

    _check_pairs(right_one_M, right_other_M)
    only_one = int((right_one_M & ~right_other_M).sum())
    only_other = int((right_other_M & ~right_one_M).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)


def delong(
    positive_M: NDArray[np.bool_], score_one_M: NDArray[np.floating], score_other_M: NDArray[np.floating]
) -> Difference:
    """Difference of two AUROCs of one class. Raises UsageError unless there are 2 positives and 2 negatives.

    Scores that rank alike give p = 1. Source: DeLong et al. 1988.
    """
    from scipy.stats import norm

    _check_pairs(score_one_M, score_other_M)
    auroc_2, covariance_22 = auroc_covariance(positive_M, np.stack([score_one_M, score_other_M]))
    gap = float(auroc_2[0] - auroc_2[1])
    contrast = np.array([1, -1])
    deviation = float(np.sqrt(max(0.0, contrast @ covariance_22 @ contrast)))
    if deviation == 0:
        return Difference(gap, gap, gap, 1.0 if gap == 0 else 0.0)
    reach = float(norm.ppf(0.975)) * deviation
    return Difference(gap, gap - reach, gap + reach, float(2 * norm.sf(abs(gap) / deviation)))


def auroc_covariance(
    positive_M: NDArray[np.bool_], score_SM: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROCs [S] and their covariance [S, S], in M log M. Source: Sun and Xu 2014, IEEE SPL 21(11), by midranks."""
    from scipy.stats import rankdata

    positive_M = np.asarray(positive_M, dtype=bool)
    n_pos, n_neg = int(positive_M.sum()), int((~positive_M).sum())
    if min(n_pos, n_neg) < 2:
        raise UsageError(
            f"DeLong's test needs 2 positives and 2 negatives, these are {n_pos} and {n_neg}: use more images"
        )
    rank_SM = rankdata(score_SM, axis=1)
    rank_SP = rankdata(score_SM[:, positive_M], axis=1)
    rank_SN = rankdata(score_SM[:, ~positive_M], axis=1)
    won_SP = (rank_SM[:, positive_M] - rank_SP) / n_neg  # share of the negatives below each positive
    won_SN = 1 - (rank_SM[:, ~positive_M] - rank_SN) / n_pos
    covariance = np.atleast_2d(np.cov(won_SP)) / n_pos + np.atleast_2d(np.cov(won_SN)) / n_neg
    return won_SP.mean(axis=1), covariance


class SeedTest(NamedTuple):
    """Two models trained with the same seeds."""

    difference: float
    """Mean over the seeds."""
    t_p: float | None
    """Paired t test; None: fewer than 2 seeds, or the same difference with every one."""
    wilcoxon_p: float | None
    """Signed-rank test, with n seeds never below 2 / 2^n: 5 seeds can't show p < 0.05."""


def over_seeds(one_S: Sequence[float], other_S: Sequence[float]) -> SeedTest:
    """Paired tests of values of the same seeds in the same order. Raises UsageError for other numbers of them."""
    from scipy.stats import ttest_rel, wilcoxon

    one, other = np.asarray(one_S, dtype=float), np.asarray(other_S, dtype=float)
    _check_pairs(one, other, "seeds")
    gap = one - other
    if len(gap) < 2 or np.ptp(gap) == 0:
        even = len(gap) >= 2 and not gap.any()
        return SeedTest(float(gap.mean()), 1.0 if even else None, 1.0 if even else None)
    return SeedTest(
        float(gap.mean()), float(ttest_rel(one, other).pvalue), float(wilcoxon(one, other).pvalue)
    )


def _check_pairs(one: NDArray[Any], other: NDArray[Any], of: str = "images") -> None:
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise UsageError(
            f"values of shapes {one.shape} and {other.shape} can't be paired: give those of the same {of}"
        )
