"""Percentile bootstrap intervals of any metrics, images or patients drawn with replacement.

A resample is not a list of images but a count for each of them: how often it was drawn. A metric that takes counts is
then computed for many resamples at once. Source: Efron and Tibshirani 1993, chapter 13; whole patients drawn, since
images of one patient are alike: Davison and Hinkley 1997, section 3.8.
Shapes: M images, R resamples, r of them at a time, G groups (patients).
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from essa_dist.errors import UsageError

Counts: TypeAlias = NDArray[np.float64]
"""[M, R]: how often each image was drawn; one column of ones is the set as it is."""
Statistic: TypeAlias = Callable[[Counts], dict[str, NDArray[np.float64]]]
"""Counts to each metric's R values; NaN where a resample can't give it (it has lost every image of a class)."""

COUNTS_AT_ONCE = 2**22  # 32 MiB: bounds the memory, whatever the number of images


def intervals(
    statistic: Statistic,
    n_images: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: NDArray[np.integer] | None = None,
) -> dict[str, tuple[float, float]]:
    """Metric to (low, high). Resamples without the metric don't count; a metric that none of them has is left out.

    ``groups`` [M]: patient of each image; whole patients are then drawn. Raises UsageError where it has another length.
    """
    found = {}
    drawn = resampled(statistic, n_images, resamples=resamples, seed=seed, groups=groups)
    for metric, values_R in drawn.items():
        defined = values_R[~np.isnan(values_R)]
        if len(defined):
            low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
            found[metric] = (float(low), float(high))
    return found


def resampled(
    statistic: Statistic,
    n_images: int,
    *,
    resamples: int,
    seed: int = 0,
    groups: NDArray[np.integer] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Each metric's values, [R]. The same ``seed`` draws the same images whatever the statistic."""
    parts = [statistic(counts_Mr) for counts_Mr in draw(n_images, resamples, seed=seed, groups=groups)]
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}


def draw(
    n_images: int, resamples: int, *, seed: int = 0, groups: NDArray[np.integer] | None = None
) -> Iterator[Counts]:
    """Counts [M, r] of ``resamples`` resamples, as many at a time as memory should hold."""
    if resamples < 1 or n_images < 1:
        raise UsageError(f"resamples={resamples} of {n_images} images: a bootstrap needs at least 1 of each")
    if groups is not None and len(groups) != n_images:
        raise UsageError(f"{len(groups)} patients for {n_images} images: give one for each image")
    group_M = np.arange(n_images) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_groups = int(group_M.max()) + 1
    random = np.random.default_rng(seed)
    at_once = max(1, COUNTS_AT_ONCE // n_images)
    for start in range(0, resamples, at_once):
        r = min(at_once, resamples - start)
        drawn_rG = random.integers(n_groups, size=(r, n_groups))
        drawn_rG += n_groups * np.arange(r)[:, None]  # one bincount for all rows
        counts_rG = np.bincount(drawn_rG.ravel(), minlength=r * n_groups).reshape(r, n_groups)
        counts_Gr = np.ascontiguousarray(counts_rG.T, dtype=np.float64)
        yield counts_Gr if groups is None else counts_Gr[group_M]


def means(values: dict[str, NDArray[np.floating]]) -> Statistic:
    """The statistic of metrics that are means over images: name to one value an image, [M]; NaN ones don't count."""
    value_SM = np.stack(list(values.values())).astype(np.float64)
    known_SM = ~np.isnan(value_SM)

    def statistic(counts_MR: Counts) -> dict[str, NDArray[np.float64]]:
        total_SR, number_SR = np.where(known_SM, value_SM, 0) @ counts_MR, known_SM @ counts_MR
        return dict(zip(values, divide(total_SR, number_SR), strict=True))

    return statistic


def divide(upper: NDArray[np.float64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotient; NaN, without a warning, where ``lower`` is 0."""
    upper, lower = np.broadcast_arrays(upper, lower)
    quotient: NDArray[np.float64] = np.divide(
        upper, lower, out=np.full(lower.shape, np.nan), where=lower != 0
    )
    return quotient
