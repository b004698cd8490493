"""Population-based training: whose weights each trial went on with."""

from pathlib import Path

from matplotlib.ticker import MaxNLocator

from essa_dist.report.plotting import canvas, grid
from essa_dist.tuning.record import Sweep, Trial
from essa_dist.tuning.report.colours import BEST
from essa_dist.tuning.report.values import ranked

MOST = 40
"""Rows of the picture; a larger population has the table only."""


def exploits(trial: Trial) -> list[tuple[str, int]]:
    """Trial and step of each of ``parents``, in their order."""
    found = [parent.rpartition("@") for parent in trial.parents]
    return [(name, int(step)) for name, _, step in found]


def ancestry(sweep: Sweep, trial: Trial) -> list[tuple[str, int]]:
    """Whose weights ``trial`` had at its best look: the trials and the steps at which they were handed on, the latest first.

    Of an ancestor only what it took before it handed on counts.
    """
    by_name = {one.name: one for one in sweep.trials}
    path: list[tuple[str, int]] = []
    steps = [one for one in exploits(trial) if one[1] < trial.best.get("step", trial.step)]
    while steps:
        name, step = steps[-1]
        path.append((name, step))
        steps = [one for one in exploits(by_name[name]) if one[1] < step] if name in by_name else []
    return path


def draw_lineage(sweep: Sweep, path: Path) -> None:
    """A row for each trial, an arrow for each exploit from the giver at its step; the best trial's ancestry thick."""
    row = {trial.name: i for i, trial in enumerate(sweep.trials)}
    best = next(iter(ranked(sweep)), None)
    givers = ancestry(sweep, best) if best else []
    takers = [best.name, *(name for name, _ in givers)] if best else []
    chain = {(taker, name, step) for taker, (name, step) in zip(takers, givers, strict=False)}
    with canvas(path, 9.0, 1.2 + 0.3 * len(row)) as figure:
        axes = grid(figure, 1, 1)[0][0]
        for trial in sweep.trials:
            axes.plot([0, trial.step], [row[trial.name]] * 2, color="#97a3b0", linewidth=1.6)
            for name, step in exploits(trial):
                if name not in row:
                    continue
                own = (trial.name, name, step) in chain
                arrow = {
                    "arrowstyle": "-|>",
                    "color": BEST if own else "#4263a8",
                    "linewidth": 2.4 if own else 1.0,
                    "connectionstyle": "arc3,rad=0.25",  # give and take between the same two at the same step stay apart
                }
                axes.annotate(
                    "", (step, row[trial.name]), (step, row[name]), arrowprops=arrow, zorder=4 if own else 3
                )
        axes.set_yticks(list(row.values()), list(row), fontsize=8.5)
        axes.set(xlabel="step at which the weights were taken", ylim=(len(row) - 0.4, -0.6))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="y")
