"""Score against rank and against what it costs; trials on the Pareto front are ringed and named."""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from essa_dist.report.plotting import BEFORE, canvas, grid
from essa_dist.tuning.record import MEMORY, TIME, Sweep, Trial
from essa_dist.tuning.report.axis import Axis
from essa_dist.tuning.report.front import front
from essa_dist.tuning.report.values import (
    is_number,
    measured,
    middle,
    number,
    ranked,
    short_names,
    value_of,
    varied,
)

KINDS = (
    ("#0b7a75", "o"),
    ("#d1663f", "s"),
    ("#4263a8", "^"),
    ("#a0458d", "D"),
    ("#8a6d3b", "v"),
    (BEFORE, "P"),
)
"""Colour and mark of the commonest values of the parameter that is told apart; the last is for all rarer ones."""
LABELS = 8
"""Trials of a longer front are ringed and not named: see the table."""
UNITS = {MEMORY: "GiB", TIME: "s / step"}


def rank_name(sweep: Sweep) -> str | None:
    """The parameter that stands for the adapter's size: its rank, else the first varied one with numbers; None: there is none."""
    trials = ranked(sweep)
    numeric = [name for name in varied(sweep, trials) if any(is_number(t.params.get(name)) for t in trials)]
    ranks = [name for name in numeric if name.rpartition(".")[2] == "rank"]
    return next(iter([*ranks, *numeric]), None)


def draw_costs(sweep: Sweep, path: Path) -> None:
    """A plot over rank, and one over each measured objective but the score. Needs a ranked trial and one of these."""
    trials, rank, objectives = ranked(sweep), rank_name(sweep), measured(sweep)[1:]
    plots = len(objectives) + (rank is not None)
    columns = plots if plots <= 3 else 2
    rows = math.ceil(plots / columns)
    with canvas(path, max(6.5, 4.6 * columns), 4.2 * rows + 0.5) as figure:
        table = grid(figure, rows, columns)
        cells = [axes for row in table for axes in row]
        marks = _Marks(sweep, trials)
        if rank is not None:
            _over_rank(cells.pop(0), marks, rank)
        for objective, axes in zip(objectives, cells, strict=False):
            marks.draw(axes, [value_of(t, objective.name) for t in trials])
            unit = UNITS.get(objective.name)
            axes.set(xlabel=f"{objective.name} ({unit})" if unit else objective.name)
            axes.set_title(f"Score against {objective.name}")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
            axes.ticklabel_format(axis="x", useOffset=False)
        wish = "higher" if sweep.objectives[0].mode == "max" else "lower"
        for row in table:
            row[0].set_ylabel(f"{sweep.objectives[0].name} ({wish} is better)")
        for axes in cells[len(objectives) :]:
            axes.set_visible(False)
        figure.legend(
            handles=marks.legend(), loc="outside lower center", ncols=(3, 5, 7)[columns - 1], fontsize=9
        )


def _over_rank(axes: Axes, marks: "_Marks", rank: str) -> None:
    line = Axis.of([t.params.get(rank) for t in marks.trials], log=rank in marks.sweep.log)
    # A little beside their rank, by chance but always the same, or trials of one rank would hide each other.
    aside = [0.025 * (zlib.crc32(t.name.encode()) % 1000 / 500 - 1) for t in marks.trials]
    marks.draw(axes, [line.place(t.params.get(rank)) + by for t, by in zip(marks.trials, aside, strict=True)])
    ticks = line.ticks(limit=10)
    axes.set_xticks([place for place, _ in ticks], [word for _, word in ticks])
    axes.set(
        xlabel=rank, xlim=(-0.08, 1.08), title=f"Score against {short_names(marks.sweep.parameters)[rank]}"
    )


def _kinds(sweep: Sweep, trials: Sequence[Trial]) -> tuple[dict[str, int], list[str]]:
    """Of each trial the number of its colour, and the words of the colours; those of the first varied parameter with words."""
    wordy = [
        name
        for name in varied(sweep, trials)
        if any(isinstance(t.params.get(name), (str, bool)) for t in trials)
        and not any(is_number(t.params.get(name)) for t in trials)
    ]
    if not wordy:
        return {trial.name: 0 for trial in trials}, ["trial"]
    values = {trial.name: number(trial.params.get(wordy[0])) for trial in trials}
    common = [value for value, _ in Counter(values.values()).most_common()]
    own = common if len(common) <= len(KINDS) else common[: len(KINDS) - 1]
    words = [f"{short_names(sweep.parameters)[wordy[0]]} {middle(value, 22)}" for value in own]
    rest = [] if len(own) == len(common) else [f"{len(common) - len(own)} others"]
    return {name: own.index(v) if v in own else len(own) for name, v in values.items()}, words + rest


class _Marks:
    """The ranked trials as marks of one kind in every plot."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        self.sweep, self.trials = sweep, trials
        self.kind_of, self.kinds = _kinds(sweep, trials)
        self.score = [value_of(trial, sweep.objectives[0].name) for trial in trials]
        self.front = {trial.name for trial in front(sweep)}

    def draw(self, axes: Axes, x: Sequence[float]) -> None:
        """The score over ``x``, [trials]; NaN is left out."""
        points = [
            (at, y, t.name) for at, y, t in zip(x, self.score, self.trials, strict=True) if math.isfinite(at)
        ]
        for kind, wins in sorted({(self.kind_of[name], name in self.front) for _, _, name in points}):
            colour, mark = KINDS[kind]
            chosen = [p for p in points if (self.kind_of[p[2]], p[2] in self.front) == (kind, wins)]
            axes.scatter(
                [at for at, _, _ in chosen],
                [y for _, y, _ in chosen],
                s=62 if wins else 34,
                color=colour,
                marker=mark,
                alpha=0.9,
                edgecolors="black" if wins else "white",
                linewidths=1.6 if wins else 0.4,
                zorder=4 if wins else 3,
            )
        axes.margins(0.09, 0.13)
        axes.ticklabel_format(axis="y", useOffset=False)
        if len(self.front) <= LABELS:
            _name(axes, [point for point in points if point[2] in self.front])

    def legend(self) -> list[Line2D]:
        known = [
            Line2D([], [], color=colour, marker=mark, markersize=6, linestyle="", label=word)
            for (colour, mark), word in zip(KINDS, self.kinds, strict=False)
        ]
        ring = Line2D(
            [], [], color="white", marker="o", markersize=8, linestyle="", label="on the Pareto front"
        )
        ring.set(markeredgecolor="black", markeredgewidth=1.6)
        return [*known, ring]


def _name(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write the names above their points, of near ones that of the lower one below it."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    above: list[tuple[float, float]] = []
    for x, y, name in sorted(points, key=lambda point: (-point[1], point[0])):
        near = any(
            abs(x - a) < 0.13 * (right - left) and abs(y - b) < 0.08 * (top - bottom) for a, b in above
        )
        if not near:
            above.append((x, y))
        axes.annotate(
            name,
            (x, y),
            xytext=(0, -6 if near else 6),
            textcoords="offset points",
            ha="center",
            va="top" if near else "bottom",
            fontsize=8,
            zorder=6,
        )
