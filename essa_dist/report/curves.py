"""Curves over the steps of a run: losses, schedules, collapse diagnostics, speed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from essa_dist.report.plotting import SERIES, canvas, grid

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One plot: metric key -> (name in the legend, factor from the recorded unit to the shown one)."""

    title: str
    unit: str
    series: Mapping[str, tuple[str, float]]
    hide_zero: bool = False
    """Leave out a series that is 0 all along: a loss term of weight 0 would only squeeze the others."""


LOSSES = (
    Panel("Total loss", "", {"loss": ("total", 1)}),
    Panel(
        "Terms",
        "nats",
        {
            "dino_global": ("DINO, global crops", 1),
            "dino_local": ("DINO, local crops", 1),
            "ibot": ("iBOT", 1),
            "koleo": ("KoLeo", 1),
        },
        hide_zero=True,
    ),
)
SCHEDULES = (
    Panel("Learning rate", "", {"lr": ("adapter", 1), "head_lr": ("head", 1)}),
    Panel("Weight decay", "", {"weight_decay": ("adapter", 1), "head_weight_decay": ("head", 1)}),
    Panel("Teacher's EMA momentum", "", {"ema_momentum": ("momentum", 1)}),
    Panel("Teacher's temperature", "", {"teacher_temp": ("temperature", 1)}),
)
COLLAPSE = (
    Panel(
        "Entropy of the teacher's targets",
        "nats",
        {"teacher_entropy": ("of each image's", 1), "prototype_entropy": ("of their mean", 1)},
    ),
    Panel("RankMe of the features", "effective dimensions", {"rankme": ("RankMe", 1)}),
    Panel("Gradient norm before clipping", "", {"grad_norm": ("norm", 1)}),
)
CANARY = (
    Panel(
        "k-NN of the teacher's features",
        "% balanced accuracy",
        {"canary_knn": ("now", 100), "canary_knn_best": ("best so far", 100)},
    ),
    Panel(
        "Linear probe of the teacher's features",
        "% balanced accuracy",
        {"canary_linear": ("now", 100), "canary_linear_best": ("best so far", 100)},
    ),
    Panel(
        "RankMe of the teacher's features",
        "effective dimensions",
        {"canary_rankme": ("now", 1), "canary_rankme_best": ("best so far", 1)},
    ),
)
SPEED = (
    Panel("Throughput", "images / s", {"img_per_s": ("throughput", 1)}),
    Panel("Time spent waiting for data", "% of the step", {"data_wait": ("wait", 100)}),
    Panel("Memory", "GiB", {"memory_gib": ("rank 0, now", 1), "peak_memory_gib": ("highest of any rank", 1)}),
    Panel(
        "Time of a step",
        "s",
        {"step_s": ("median of ranks", 1), "step_s_min": ("fastest", 1), "step_s_max": ("slowest", 1)},
    ),
    Panel("Communication between ranks", "% of the step", {"comm_share": ("under way", 100)}),
    Panel("Sent by a rank", "MB / step", {"comm_bytes": ("sent", 1e-6)}),
)

SPARSE = ("rankme", "entropy", "canary", "comm_", "val_")
"""In the names of metrics that are taken every few rows: their points are joined."""


def column(rows: Rows, key: str) -> NDArray[np.float64]:
    """One metric over all rows, [rows]; absent and null become NaN, which a curve shows as a gap."""
    values = [row.get(key) for row in rows]
    return np.array([float(v) if isinstance(v, int | float) else math.nan for v in values], dtype=np.float64)


def present(rows: Rows, panels: Sequence[Panel]) -> list[Panel]:
    """The panels, reduced to the series that have a finite value (and one that isn't 0, where asked)."""
    kept = [
        replace(panel, series={key: value for key, value in panel.series.items() if _worth(rows, key, panel)})
        for panel in panels
    ]
    return [panel for panel in kept if panel.series]


def _worth(rows: Rows, key: str, panel: Panel) -> bool:
    values = column(rows, key)
    finite = values[np.isfinite(values)]
    return bool(finite.any() if panel.hide_zero else len(finite))


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred mean over ``window`` values, [n] -> [n]; at the ends and at gaps over those there are."""
    finite = np.isfinite(values)
    box = np.ones(min(window, len(values)))
    total = np.convolve(np.where(finite, values, 0.0), box, mode="same")
    count = np.convolve(finite.astype(float), box, mode="same")
    return np.where(finite, total / np.maximum(count, 1.0), np.nan)


def draw_panels(rows: Rows, panels: Sequence[Panel], path: Path, *, smoothed: bool = False) -> None:
    """Draw ``panels`` (not empty, from :func:`present`) side by side, two or three a row, into ``path``."""
    columns = min(len(panels), 2 if len(panels) != 3 else 3)
    lines = math.ceil(len(panels) / columns)
    with canvas(path, 10.5, 3.1 * lines) as figure:
        cells = [axes for row in grid(figure, lines, columns) for axes in row]
        for axes, panel in zip(cells, panels, strict=False):
            _draw_panel(axes, rows, panel, smoothed)
        for axes in cells[len(panels) :]:
            axes.set_visible(False)


def _draw_panel(axes: Axes, rows: Rows, panel: Panel, smoothed: bool) -> None:
    steps = column(rows, "step")
    for (colour, dashes), (key, (name, factor)) in zip(SERIES, panel.series.items(), strict=False):
        values = column(rows, key) * factor
        sparse = any(name in key for name in SPARSE)
        there = np.isfinite(values) if sparse else np.full(len(values), True)
        x, y = steps[there], values[there]
        marker = "o" if np.isfinite(y).sum() <= 30 else None
        if smoothed and len(y) > 50:
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            y = smooth(y, window=max(5, len(y) // 25))
        axes.plot(
            x, y, color=colour, label=name, marker=marker, markersize=4, linewidth=1.8, linestyle=dashes
        )
    axes.set(title=panel.title, xlabel="step", ylabel=panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.ticklabel_format(axis="y", useOffset=False)
    if len(panel.series) > 1:
        # Below the axes: curves may fill any corner.
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=4, columnspacing=1.0)
