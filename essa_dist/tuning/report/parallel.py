"""Parallel coordinates: a line for each trial through its settings to its score."""

import zlib
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from essa_dist.report.plotting import bare, canvas, grid, short
from essa_dist.tuning.record import Sweep, Trial
from essa_dist.tuning.report.axis import Axis
from essa_dist.tuning.report.colours import BEST, NO_SCORE, by_score
from essa_dist.tuning.report.values import ranked, short_names, value_of

INK = "#2b3138"
_SPREAD = 0.035  # of an axis: lines through one word are fanned out, so that they can be told apart


def draw_parallel(sweep: Sweep, names: Sequence[str], path: Path) -> None:
    """Axes for the parameters ``names`` and the score. Needs a ranked trial and a name."""
    good = ranked(sweep)
    colours, placed = by_score(sweep, good), {trial.name for trial in good}
    score = sweep.objectives[0].name
    lines = [Axis.of([t.params.get(name) for t in sweep.trials], log=name in sweep.log) for name in names]
    end = Axis.of([value_of(t, score) for t in good], log=False)
    with canvas(path, min(18.0, max(7.5, 1.5 * (len(names) + 1))), 5.2) as figure:
        axes = grid(figure, 1, 1)[0][0]
        for trial in [
            *(t for t in sweep.trials if t.name not in placed and t.status != "waiting"),
            *good[::-1],
        ]:
            y = [_fanned(line, trial, name) for line, name in zip(lines, names, strict=True)]
            if trial.name in placed:
                y.append(end.place(value_of(trial, score)))
            first = trial is good[0]
            axes.plot(
                range(len(y)),
                y,
                color=BEST if first else colours.get(trial.name, NO_SCORE),
                linewidth=3.2 if first else 1.2,
                linestyle="-" if trial.name in placed else (0, (4, 3)),
                alpha=1.0 if first else max(0.35, min(0.9, 30 / len(sweep.trials))),
                solid_joinstyle="round",
            )
        shown = [*short_names(names).values(), score]
        for x, (line, name) in enumerate(zip([*lines, end], shown, strict=True)):
            _draw_axis(axes, x, line, name, raised=len(shown) > 7 and x % 2 == 1)
        bare(axes)
        axes.set(xlim=(-0.15, len(names) + 0.55), ylim=(-0.06, 1.06 + 0.14))


def _fanned(line: Axis, trial: Trial, name: str) -> float:
    """The place of a setting; at a word, or where there is none, a little off, by chance but always the same."""
    value = trial.params.get(name)
    place = line.place(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and len(line.numbers) > 1:
        return place
    return place + _SPREAD * (2 * (zlib.crc32(trial.name.encode()) % 1000) / 999 - 1)


def _draw_axis(axes: Axes, x: int, line: Axis, name: str, *, raised: bool) -> None:
    axes.plot([x, x], [-0.04, 1.04], color=INK, linewidth=1.1, zorder=5)
    axes.text(
        x, 1.15 if raised else 1.08, short(name, 20), ha="center", va="bottom", weight="bold", fontsize=9.5
    )
    for place, word in line.ticks():
        axes.plot([x - 0.02, x + 0.02], [place, place], color=INK, linewidth=1.1, zorder=6)
        box = {"facecolor": "white", "alpha": 0.78, "edgecolor": "none", "pad": 0.8}
        axes.text(x + 0.045, place, word, ha="left", va="center", fontsize=8.5, color=INK, bbox=box, zorder=7)
