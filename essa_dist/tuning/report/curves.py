"""Learning curves of all trials: the score at each look, over the steps and over the time of training."""

import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from essa_dist.report.plotting import canvas, grid
from essa_dist.tuning.record import Sweep, Trial
from essa_dist.tuning.report.colours import BEST, NO_SCORE, by_score
from essa_dist.tuning.report.values import ranked

ENDS = {"stopped": ("|", 8.0), "diverged": ("x", 6.5), "out_of_memory": ("x", 6.5), "failed": ("x", 6.5)}
"""Mark and size at the last look of a trial that did not go to its end."""


def has_curves(sweep: Sweep) -> bool:
    """Whether any trial was looked at."""
    return any(math.isfinite(y) for trial in sweep.trials for y in _scores(sweep, trial))


def draw_curves(sweep: Sweep, path: Path) -> None:
    """Two plots of the same scores. Needs :func:`has_curves`."""
    with canvas(path, 11.0, 4.4) as figure:
        over_steps, over_time = grid(figure, 1, 2)[0]
        longest = max(
            (look.get("seconds", 0.0) for trial in sweep.trials for look in trial.curve), default=0.0
        )
        unit, seconds = (
            ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)
        )
        _draw(over_steps, sweep, lambda look: look.get("step", math.nan))
        _draw(over_time, sweep, lambda look: look.get("seconds", math.nan) / seconds)
        over_steps.set(xlabel="step", ylabel=sweep.objectives[0].name, title="Over the steps")
        over_steps.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        over_time.set(xlabel=f"{unit} of training", title="Over the time")


def _draw(axes: Axes, sweep: Sweep, x_of: Callable[[dict[str, float]], float]) -> None:
    good = ranked(sweep)
    colours, best = by_score(sweep, good), good[0].name if good else ""
    placed = {trial.name for trial in good}
    # The worst first: better ones are drawn above them.
    for trial in [*(t for t in sweep.trials if t.name not in placed), *good[::-1]]:
        points = [(x_of(look), y) for look, y in zip(trial.curve, _scores(sweep, trial), strict=True)]
        if not any(math.isfinite(x) and math.isfinite(y) for x, y in points):
            continue
        first = trial.name == best
        colour = BEST if first else colours.get(trial.name, NO_SCORE)
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=3.0 if first else 1.1,
            alpha=1.0 if first else max(0.35, min(0.9, 30 / len(sweep.trials))),
            marker="o" if sum(math.isfinite(y) for _, y in points) == 1 else None,
            markersize=6 if first else 3.5,
            label=f"best: {trial.name}" if first else None,
        )
        end = next(point for point in reversed(points) if math.isfinite(point[1]))
        if trial.status in ENDS:
            mark, size = ENDS[trial.status]
            axes.plot(*end, marker=mark, markersize=size, color=colour, markeredgewidth=1.6)
    axes.ticklabel_format(axis="y", useOffset=False)
    if best:
        axes.legend(fontsize=9, loc="best")


def _scores(sweep: Sweep, trial: Trial) -> list[float]:
    return [float(look.get(sweep.objectives[0].name, math.nan)) for look in trial.curve]
