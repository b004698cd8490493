"""A suite's quoted values as bars with their intervals, and as a radar of the models' profiles."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from essa_dist.evaluation.suite.words import NAMES, Row, quoted
from essa_dist.report.plotting import BEFORE, SERIES, canvas, grid, short

Quoted = dict[tuple[str, str], dict[str, Row]]
OTHERS = (*(colour for colour, _ in SERIES), "#7d5ba6", "#8a6d3b", "#2b8cbe")
"""Colours of all models but the baseline, which is grey; beyond seven they repeat."""
MARKS = "osD^vP*X"
MOST_NUMBERS = 24  # bars of one plot: beyond that the numbers above them would overlap
INK = "#2b3138"


def colours(table: Mapping[str, Any]) -> dict[str, str]:
    """Of each model, the baseline first."""
    others = [name for name in table["models"] if name != table["baseline"]]
    return {table["baseline"]: BEFORE} | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def draw_suite_bars(table: Mapping[str, Any], path: Path) -> None:
    """One plot for each data set and label fraction, one group of bars for each protocol."""
    plots: dict[tuple[str, float], Quoted] = {}
    for key, of_model in quoted(table).items():
        row = next(iter(of_model.values()))
        plots.setdefault((row["data"], row["fraction"]), {})[key] = of_model
    bars = max(len(plot) for plot in plots.values()) * len(table["models"])
    with canvas(path, min(18.0, max(6.5, 1.6 + 0.62 * bars)), 3.4 * len(plots) + 0.6) as figure:
        cells = grid(figure, len(plots), 1)
        for (axes,), ((data, fraction), plot) in zip(cells, plots.items(), strict=True):
            _bars(axes, plot, colours(table))
            part = "" if fraction == 1 else f", {100 * fraction:g} % of the labels"
            axes.set_title(short(f"{data}{part}", 60))
        handles, names = cells[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)), fontsize=9)


def _bars(axes: Axes, plot: Quoted, colour: Mapping[str, str]) -> None:
    width = 0.84 / len(colour)
    numbered = len(plot) * len(colour) <= MOST_NUMBERS
    for j, model in enumerate(colour):
        places = [i for i, of_model in enumerate(plot.values()) if model in of_model]
        rows = [of_model[model] for of_model in plot.values() if model in of_model]
        x = [i - 0.42 + width * (j + 0.5) for i in places]
        value = [100 * row["value"] for row in rows]
        low = [100 * (row["value"] - _or(row["low"], row)) for row in rows]
        high = [100 * (_or(row["high"], row) - row["value"]) for row in rows]
        error = [[max(0.0, d) for d in low], [max(0.0, d) for d in high]]
        style = {"ecolor": INK, "capsize": 2.5, "elinewidth": 1.1}
        axes.bar(
            x,
            value,
            width=0.92 * width,
            color=colour[model],
            label=short(model, 28),
            yerr=error,
            error_kw=style,
        )
        for at, row, top in zip(x, value, error[1], strict=True):
            if numbered:
                axes.text(at, row + top + 1.5, f"{row:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(plot)), [_axis_name(key, of_model) for key, of_model in plot.items()])
    axes.set(ylabel="%", ylim=(0, 112), yticks=range(0, 101, 20), xlim=(-0.6, len(plot) - 0.4))
    axes.grid(visible=False, axis="x")


def _or(bound: float | None, row: Row) -> float:
    return float(row["value"] if bound is None else bound)


def _axis_name(key: tuple[str, str], of_model: Mapping[str, Row]) -> str:
    row = next(iter(of_model.values()))
    return f"{NAMES.get(row['protocol'], row['protocol'])}\n{key[1].replace('_', ' ')}"


def has_radar(table: Mapping[str, Any]) -> bool:
    """A radar needs three axes, and a second model to compare."""
    return len(quoted(table)) >= 3 and len(table["models"]) > 1


def draw_suite_radar(table: Mapping[str, Any], path: Path) -> None:
    """One axis for each evaluation, from the smallest to the largest value of any model on it; all ticks are told."""
    rows = quoted(table)
    angles = [2 * math.pi * i / len(rows) for i in range(len(rows))]
    ranges = [_range([row["value"] for row in of_model.values()]) for of_model in rows.values()]
    with canvas(path, 9.5, 7.5) as figure:
        axes = figure.add_subplot(projection="polar")
        axes.set_theta_offset(math.pi / 2)  # type: ignore[attr-defined]
        axes.set_theta_direction(-1)  # type: ignore[attr-defined]
        for i, (model, colour) in enumerate(colours(table).items()):
            points = [
                (angle, (of_model[model]["value"] - low) / (high - low))
                for angle, of_model, (low, high) in zip(angles, rows.values(), ranges, strict=True)
                if model in of_model
            ]
            around, out = zip(*points, points[0], strict=True)
            axes.plot(
                around, out, color=colour, marker=MARKS[i % len(MARKS)], markersize=5, label=short(model, 28)
            )
            axes.fill(around, out, color=colour, alpha=0.07)
        names = [
            _spoke(key, of_model, bounds)
            for (key, of_model), bounds in zip(rows.items(), ranges, strict=True)
        ]
        axes.set_xticks(angles, names, fontsize=8.5)
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):  # beside the circle, not on it
            side = math.sin(angle)
            label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
        axes.tick_params(axis="x", pad=10)
        axes.set(ylim=(0, 1.05), yticks=[0, 0.5, 1], yticklabels=[])
        axes.spines["polar"].set_visible(False)
        figure.legend(loc="outside upper center", ncols=4, fontsize=9)


def _range(values: list[float]) -> tuple[float, float]:
    """From a fifth of their spread (at least a point) below the smallest value to the largest."""
    low, high = min(values), max(values)
    return low - max(0.01, (high - low) / 5), max(high, low + 1e-9)


def _spoke(key: tuple[str, str], of_model: Mapping[str, Row], bounds: tuple[float, float]) -> str:
    row = next(iter(of_model.values()))
    part = "" if row["fraction"] == 1 else f", {100 * row['fraction']:g} %"
    what = NAMES.get(row["protocol"], row["protocol"])
    return f"{short(row['data'], 20)}{part}\n{what}\n{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"
