"""Which parameters the score depends on: a random forest over the trials, and what it loses when one is shuffled.

Breiman, "Random Forests", 2001, doi:10.1023/A:1010933404324. Not Optuna's fANOVA or PED-ANOVA: the first can't have
parameters that some trials lack, the second looks at the best tenth only, which of a small sweep is a trial or two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from essa_dist.report.plotting import AFTER, canvas, grid, short
from essa_dist.tuning.record import Sweep, Trial
from essa_dist.tuning.report.values import is_number, number, ranked, short_names, value_of, varied

FEWEST = 10
"""Trials with a score, and at least twice as many as parameters: of fewer the order is chance."""
_TREES, _SHUFFLES, _SEED = 100, 10, 0


@dataclass(frozen=True)
class Importance:
    """Of each parameter, the most important first: what shuffling it costs the forest, as a share of the sum of all."""

    names: tuple[str, ...]
    shares: tuple[float, ...]
    errors: tuple[float, ...]
    """Standard deviation over the shuffles."""
    explained: float
    """R² of the forest on trials that a tree wasn't grown on: at 0 or below, the order says nothing."""
    trials: int


def importance(sweep: Sweep) -> Importance | str:
    """The importance of each parameter that was varied, or why there is none."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    trials = ranked(sweep)
    names = varied(sweep, trials)
    needed = max(FEWEST, 2 * len(names))
    if len(trials) < needed:
        return f"too few trials with a score: {len(trials)}, and {needed} are needed for {len(names)} varied parameters."
    score_T = np.array([value_of(trial, sweep.objectives[0].name) for trial in trials])
    if len(names) < 2:
        return "fewer than two parameters differ between the trials."
    if np.ptp(score_T) == 0:
        return "the trials don't differ in their score."
    x_TP = np.column_stack([_column(trials, name, log=name in sweep.log) for name in names])
    forest = RandomForestRegressor(_TREES, oob_score=True, random_state=_SEED).fit(x_TP, score_T)
    lost = permutation_importance(forest, x_TP, score_T, n_repeats=_SHUFFLES, random_state=_SEED)
    mean_P = np.maximum(lost.importances_mean, 0.0)
    if mean_P.sum() == 0:
        return "the score depends on no parameter that a random forest could find."
    order = np.argsort(-mean_P, kind="stable")
    return Importance(
        tuple(names[i] for i in order),
        tuple(float(mean_P[i] / mean_P.sum()) for i in order),
        tuple(float(lost.importances_std[i] / mean_P.sum()) for i in order),
        float(forest.oob_score_),
        len(trials),
    )


def _column(trials: Sequence[Trial], name: str, *, log: bool) -> NDArray[np.float64]:
    """Values of one parameter as numbers, [T]: words by their place in the alphabet, after all numbers.

    A trial without it gets the median: what comes of lacking it is the doing of the parameter that it depends on.
    """
    values = [trial.params.get(name) for trial in trials]
    words = sorted({number(v) for v in values if v is not None and not is_number(v)})
    top = max((float(v) for v in values if v is not None and is_number(v)), default=0.0)
    # Trees only ask for the order: how far apart the words stand doesn't matter.
    place = {word: top + 1 + i for i, word in enumerate(words)}
    column_T = np.array(
        [math.nan if v is None else float(v) if is_number(v) else place[number(v)] for v in values]
    )
    if log:
        column_T = np.log(column_T)
    return np.where(np.isnan(column_T), np.nanmedian(column_T), column_T)


def draw_importance(found: Importance, path: Path) -> None:
    """Bars, the longest on top."""
    with canvas(path, 8.0, 1.3 + 0.36 * len(found.names)) as figure:
        axes = grid(figure, 1, 1)[0][0]
        places = range(len(found.names))[::-1]
        axes.barh(
            places,
            found.shares,
            height=0.62,
            color=AFTER,
            xerr=found.errors,
            error_kw={"ecolor": "#2b3138", "capsize": 2.5},
        )
        words = short_names(found.names)
        axes.set_yticks(places, [short(words[name], 28) for name in found.names])
        axes.set(xlabel="importance, as a share of all", xlim=(0, None))
        axes.grid(visible=False, axis="y")
