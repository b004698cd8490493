"""Pictures of a study. What was measured is drawn full; what the planner predicts is dashed, hollow and called so, and is
drawn at the sizes that were run too, where it can be judged.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from essa_dist.report.plotting import SERIES, canvas
from essa_dist.scaling.config import PARTS

Rows = Sequence[Mapping[str, Any]]
IDEAL = "#97a3b0"
COLOURS = dict(
    zip(PARTS, ("#c5ccd3", "#8aa4d6", "#4263a8", "#d1663f", "#0b7a75", "#58b5ac", "#e3e7eb"), strict=True)
)


def throughput(path: Path, measured: Rows, predicted: Rows) -> None:
    """Images a second against processes, both on logarithmic axes, beside a line through the first point."""
    with canvas(path, 7.5, 4.8) as figure:
        axes = figure.subplots()
        _curves(axes, measured, predicted, "img_per_s")
        for rows in _by_curve([*measured, *predicted], of_device=True).values():
            first = min(rows, key=lambda row: int(row["processes"]))
            xs = sorted({int(row["processes"]) for row in rows})
            each = first["img_per_s"] / first["processes"]
            axes.plot(xs, [each * x for x in xs], color=IDEAL, linewidth=1, linestyle=":")
        axes.plot([], [], color=IDEAL, linewidth=1, linestyle=":", label="ideal")
        axes.set(yscale="log", title="Throughput", ylabel="images a second")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _processes(axes, [*measured, *predicted], log=True)
        figure.legend(loc="outside right upper", fontsize=8)


def efficiency(path: Path, measured: Rows, predicted: Rows) -> None:
    """Percent against processes."""
    with canvas(path, 7.5, 4.2) as figure:
        axes = figure.subplots()
        axes.axhline(100, color=IDEAL, linewidth=1, linestyle=":", label="ideal")
        _curves(axes, measured, predicted, "efficiency", factor=100)
        axes.set(title="Efficiency", ylabel="%")
        axes.set_ylim(0, max(105.0, axes.get_ylim()[1]))
        _processes(axes, [*measured, *predicted], log=True)
        figure.legend(loc="outside right upper", fontsize=8)


def split(path: Path, measured: Rows, predicted: Rows) -> None:
    """Stacked parts of a step, of what was measured; nothing of this is predicted."""
    rows = [row for row in measured if row.get("split_s")]
    with canvas(path, max(6.0, 2.4 + 1.1 * len(rows)), 4.5) as figure:
        axes = figure.subplots()
        bottom = [0.0] * len(rows)
        for part in PARTS:
            heights = [row["split_s"][part] for row in rows]
            axes.bar(range(len(rows)), heights, 0.62, bottom=bottom, label=part, color=COLOURS[part])
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        for x, row in enumerate(rows):
            share = row["split_s"]["communication"] / row["step_s"]
            words = f"{row['step_s']:.3g} s" + (f"\n{share:.0%} comm." if row["processes"] > 1 else "")
            axes.annotate(
                words, (x, bottom[x]), textcoords="offset points", xytext=(0, 3), ha="center", fontsize=8
            )
        names = [f"{row['strategy']} {row['mode']}\n{row['processes']} x" for row in rows]
        axes.set_xticks(range(len(rows)), names, fontsize=8)
        axes.grid(visible=False, axis="x")
        axes.set(
            title="Where the time of a step goes", ylabel="seconds", ylim=(0, 1.18 * max(bottom, default=1))
        )
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=8)


def _curves(axes: Axes, measured: Rows, predicted: Rows, key: str, *, factor: float = 1.0) -> None:
    curves = _by_curve([row for row in measured if row.get(key) is not None])
    for number, ((strategy, mode, _), rows) in enumerate(curves.items()):
        colour, _ = SERIES[number % len(SERIES)]
        xs, ys = [row["processes"] for row in rows], [factor * row[key] for row in rows]
        spread = [
            [abs(factor * row[f"{key}_range"][i] - y) for row, y in zip(rows, ys, strict=True)]
            for i in (0, 1)
        ]
        axes.errorbar(
            xs,
            ys,
            yerr=spread,
            color=colour,
            marker="o",
            markersize=5,
            capsize=3,
            label=f"{strategy}, {mode}",
        )
        own = [row for row in predicted if (row["strategy"], row["mode"]) == (strategy, mode)]
        for (_, _, device), points in _by_curve(own, of_device=True).items():
            name = f"{strategy}, {mode}: predicted, {device}"
            name += "" if points[0]["calibrated"] else " (not measured)"
            along = [[p["processes"] for p in points], [factor * p[key] for p in points]]
            axes.plot(
                *along,
                linestyle="--",
                color=colour,
                label=name,
                linewidth=1.2,
                marker="o",
                markersize=7,
                markerfacecolor="none",
            )
            if key == "img_per_s":
                low, high = ([p[f"{key}_range"][i] for p in points] for i in (0, 1))
                axes.fill_between(
                    [p["processes"] for p in points], low, high, color=colour, alpha=0.10, linewidth=0
                )


def _by_curve(rows: Rows, *, of_device: bool = False) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """Rows with a speed by strategy, mode and, with ``of_device``, device, each in the order of processes."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in sorted((row for row in rows if "step_s" in row), key=lambda row: int(row["processes"])):
        device = row["device"] if of_device else ""
        found.setdefault((row["strategy"], row["mode"], device), []).append(row)
    return found


def _processes(axes: Axes, rows: Rows, *, log: bool) -> None:
    sizes = sorted({int(row["processes"]) for row in rows if "step_s" in row})
    if log and len(sizes) > 1:
        axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("processes")
