"""Whether what was found in a grid's cells is more than chance."""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from essa_dist.evaluation.metrics.paired import Difference

LEVEL = 0.95
FLIPS = 9_999
"""Of the signs at most; 13 units and fewer are done exactly."""


def clustered(gaps: Sequence[float], units: Sequence[Hashable]) -> Difference | None:
    """The mean of ``gaps``, its 95 % interval, and a two-sided p for no difference; None with fewer than two ``units``.

    Gaps of one unit may vary together: of cells that share their self-supervised run, their labels and their test images
    each repeats the luck of the others. So the interval is the cluster-robust one (Liang and Zeger 1986) with the t of
    one degree less than there are units, and p is of the sign-flip test that turns whole units. G units give a p of no
    less than 2 / 2^G.
    """
    from scipy.stats import permutation_test, t

    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    gap_N, n_units = np.asarray(gaps, dtype=float), len(numbers)
    if n_units < 2:
        return None
    unit_N = np.array([numbers[unit] for unit in units])
    mean = float(gap_N.mean())
    residual_G = np.bincount(unit_N, gap_N - mean)
    error = math.sqrt(n_units / (n_units - 1) * float(residual_G @ residual_G)) / len(gap_N)
    half = float(t.ppf((1 + LEVEL) / 2, n_units - 1)) * error
    flipped = permutation_test(
        (np.bincount(unit_N, gap_N),),
        lambda totals, axis: totals.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        random_state=np.random.default_rng(0),
    )
    return Difference(mean, mean - half, mean + half, float(flipped.pvalue))


def matched_test(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """``matched`` cells, their ``mean_difference``, ``units``, ``interval``, ``p`` and ``shown``, and the same ``by_set``.

    Each pair is two cells that are alike but for what is compared, with ``value``, ``unit`` and ``data``. ``shown`` is
    better, worse or no, for an interval that holds zero, or None, where there is no interval.
    """
    by_set = defaultdict(list)
    for one, other in pairs:
        by_set[one["data"]].append((one, other))
    return _tested(pairs) | {"by_set": {name: _tested(own) for name, own in by_set.items()}}


def _tested(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    gaps = [one["value"] - other["value"] for one, other in pairs]
    units = [one["unit"] for one, _ in pairs]
    found = clustered(gaps, units)
    shown = None
    if found is not None:
        shown = "better" if found.low > 0 else "worse" if found.high < 0 else "no"
    return {
        "matched": len(gaps),
        "units": len(set(units)),
        "mean_difference": float(np.mean(gaps)) if gaps else None,
        "interval": None if found is None else [found.low, found.high],
        "p": None if found is None else found.p,
        "shown": shown,
    }


SHOWN = {
    "better": "shown",
    "worse": "the opposite is shown",
    "no": "not shown, for the interval holds zero",
    None: "not shown, for one set and seed tell nothing of chance",
}


def matched_words(tested: Mapping[str, Any]) -> str:
    """``shown: +1.2 points over 18 matched cells, 95 % interval +0.3 to +2.1 over 9 ..., p 0.004 (blood +1.4, cxr +1.0)``."""
    told = f"{SHOWN[tested['shown']]}: {_points(tested['mean_difference'])} points over {tested['matched']} matched cells"
    if tested["interval"] is not None:
        low, high = map(_points, tested["interval"])
        told += f", 95 % interval {low} to {high} over {tested['units']} units, p {tested['p']:.2g}"
    sets = [f"{name} {_points(one['mean_difference'])}" for name, one in tested["by_set"].items()]
    return told + (f" ({', '.join(sets)})" if len(sets) > 1 else "")


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
