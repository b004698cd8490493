"""Confusion matrices before and after, and how each class's recall moved."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from essa_dist.report.plotting import AFTER, canvas, grid, shorten
from essa_dist.report.record import Pair, Result

Matrix = NDArray[np.float64]
NUMBERS_UP_TO = 16  # classes: beyond that the numbers in the cells would overlap


def has_confusion(pair: Pair) -> bool:
    """Both sides carry a matrix over the same classes."""
    sides = (pair.before, pair.after)
    return all(side.get("confusion") and side.get("classes") for side in sides) and (
        list(pair.before["classes"]) == list(pair.after["classes"])
    )


def row_shares(result: Result) -> Matrix:
    """Counts (rows = truth) to shares of each row, [K, K]; a class without test images stays NaN."""
    counts = np.asarray(result["confusion"], dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    shares: Matrix = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return shares


def recall_change(pair: Pair) -> Matrix:
    """Per-class recall after minus before, [K], in percentage points."""
    change: Matrix = 100 * (np.diag(row_shares(pair.after)) - np.diag(row_shares(pair.before)))
    return change


def draw_confusion(pair: Pair, path: Path) -> None:
    """Both matrices on one colour scale (0..100 %), and the recall change beside them."""
    names = shorten(pair.after["classes"])
    size = min(max(3.2, 0.46 * len(names)), 7.0)
    with canvas(path, 3.0 * size + 2.4, size + 1.7) as figure:
        before, after, change = grid(figure, 1, 3)[0]
        _draw_matrix(before, row_shares(pair.before), names, "Before", with_names=True)
        _draw_matrix(after, row_shares(pair.after), names, "After", with_names=False)
        _draw_change(change, recall_change(pair), names)


def draw_one(result: Result, path: Path) -> None:
    """The matrix of one model."""
    names = shorten(result["classes"])
    size = min(max(3.2, 0.46 * len(names)), 7.0)
    with canvas(path, size + 1.7, size + 1.4) as figure:
        _draw_matrix(grid(figure, 1, 1)[0][0], row_shares(result), names, "", with_names=True)


def _draw_matrix(axes: Axes, shares: Matrix, names: list[str], title: str, with_names: bool) -> None:
    axes.imshow(shares, cmap="YlGnBu", vmin=0, vmax=1)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(places, names if with_names else [""] * len(names), fontsize=8)
    axes.set(title=title, xlabel="predicted", ylabel="true" if with_names else "")
    axes.grid(visible=False)
    for (row, column), share in np.ndenumerate(shares):
        if len(names) <= NUMBERS_UP_TO and share >= 0.005:
            ink = "white" if share > 0.55 else "#20262c"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=ink)


def _draw_change(axes: Axes, change: Matrix, names: list[str]) -> None:
    places = np.arange(len(change))
    known = np.nan_to_num(change)
    axes.barh(places, known, color=[AFTER if value >= 0 else "#c2452d" for value in known], height=0.7)
    for place, value in zip(places, change, strict=True):
        text = "no test image" if np.isnan(value) else f"{value:+.1f}"
        side = "left" if np.nan_to_num(value) >= 0 else "right"
        axes.annotate(
            text,
            (np.nan_to_num(value), place),
            xytext=(3 if side == "left" else -3, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=8,
        )
    reach = 1.35 * max(float(np.abs(known).max()), 5.0)
    axes.set(ylim=(len(change) - 0.5, -0.5), xlim=(-reach, reach))
    axes.set_yticks(places, names, fontsize=8)
    axes.set(title="Change of recall", xlabel="percentage points")
    axes.set_box_aspect(1)  # as tall as the matrices: their rows and these bars stand in line
    axes.axvline(0, color="#2b3138", linewidth=1)
    axes.grid(visible=False, axis="y")
