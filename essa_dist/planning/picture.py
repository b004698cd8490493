"""The memory over one training step, term by term."""

from pathlib import Path

import numpy as np

from essa_dist.planning.choices import GIB, Case, Choices, Row
from essa_dist.planning.layouts import Layout
from essa_dist.planning.memory import Memory
from essa_dist.report.plotting import canvas

COLOURS = (
    "#5b6570", "#97a3b0", "#c5ccd3", "#4263a8", "#8aa4d6", "#0b7a75", "#58b5ac", "#d1663f", "#eda883", "#a0458d", "#d79bca", "#b8a14a",
)  # fmt: skip


def draw(path: Path, choices: Choices, row: Row, case: Case) -> None:
    """Write the PNG."""
    run = choices.run
    layout = Layout(row.layout, case.ranks, run.shard_frozen)
    load = choices.load(case, max(1, run.batch_size // (case.ranks * run.accumulate)))
    memory = Memory(choices.seen(case), run.accumulate)
    series = [(name, values / GIB) for name, values in memory.timeline(load, layout) if values.max() > 0]
    series.sort(key=lambda item: item[0] not in layout.standing(memory.seen.sets))
    total = np.sum([values for _, values in series], axis=0)
    with canvas(path, 10, 5) as figure:
        axes = figure.subplots()
        x = np.arange(len(total))
        axes.stackplot(
            x,
            *(values for _, values in series),
            labels=[name for name, _ in series],
            colors=COLOURS,
            linewidth=0,
        )
        top = int(total.argmax())
        axes.plot(top, total[top], "o", color="#1c2730", markersize=4)
        axes.annotate(f"{total[top]:.2f} GiB", (top, total[top]), textcoords="offset points", xytext=(6, 4))
        if row.layout != "none" and 0 < case.memory / GIB < 2 * total[top]:
            axes.axhline(case.memory / GIB, color="#b3261e", linewidth=1, linestyle="--")
        axes.set(
            title=f"{choices.subject.facts()['model']}, batch {run.batch_size}, {row.layout} on {case.ranks} x {case.device.name}",
            ylabel="GiB of a rank",
            xlabel="allocations of one step: forward, backward, update",
            xlim=(0, len(total)),
            ylim=(0, 1.1 * total[top]),
        )
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], names[::-1], loc="outside right upper", fontsize=8)
