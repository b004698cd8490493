"""Bars and histograms. A panel that would show one value only is left out: the page says it in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from essa_dist.data.index import NONE
from essa_dist.data.pixels import PLAIN
from essa_dist.packing.report.record import Packed
from essa_dist.report.plotting import SERIES, canvas, grid, short

COLUMNS = 3
BARS = 30
"""Classes in the picture; the table has all."""
BINS = 40

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """Histograms of one quantity on one pair of axes."""

    title: str
    unit: str
    series: dict[str, Values]
    """Name in the legend -> a value for each sample (or patient)."""

    @property
    def constant(self) -> bool:
        """Whether there is nothing to plot."""
        return all(len(v) == 0 or v.min() == v.max() for v in self.series.values())

    def in_words(self) -> str:
        """The values where there is nothing to plot."""
        known = [f"{name}: {values[0]:g}" for name, values in self.series.items() if len(values)]
        return f"{self.title}: the same for all ({', '.join(known)} {self.unit})" if known else ""


def panels(packed: Packed) -> list[Panel]:
    """What the index knows of all samples."""
    index = packed.index
    height, width = (np.asarray(side, np.float64) for side in (index.height, index.width))
    patients = np.asarray(index.patient)
    per_patient = np.unique(patients[patients != NONE], return_counts=True)[1].astype(np.float64)
    found = [
        Panel("Image size", "pixels", {"width": width, "height": height}),
        Panel("Aspect", "width / height", {"aspect": width / height}),
        Panel("Stored size", "kB an image", {"size": np.asarray(index.length, np.float64) / 1e3}),
        Panel("Samples of a patient", "samples", {"samples": per_patient}),
        *_windows(packed),
    ]
    return [panel for panel in found if any(len(values) for values in panel.series.values())]


def _windows(packed: Packed) -> list[Panel]:
    """Real values that are shown black and white, where any sample has another window than 0..255."""
    index = packed.index
    low, high = np.asarray(index.low, np.float64), np.asarray(index.high, np.float64)
    own = (low != PLAIN.low) | (high != PLAIN.high)
    if not own.any():
        return []
    slope = np.asarray(index.slope, np.float64)[own]
    intercept = np.asarray(index.intercept, np.float64)[own]
    ends = np.sort(np.stack([slope * low[own] + intercept, slope * high[own] + intercept]), axis=0)
    return [Panel("Window", "real value", {"lower end": ends[0], "upper end": ends[1]})]


def draw_panels(shown: Sequence[Panel], grey: NDArray[np.int64] | None, packed: Packed, path: Path) -> None:
    """Histograms, and the grey values [3, 256] first."""
    draws: list[Callable[[Axes], None]] = (
        [] if grey is None else [lambda axes: _draw_grey(axes, grey, packed)]
    )
    draws += [lambda axes, panel=panel: _draw_histogram(axes, panel) for panel in shown]  # type: ignore[misc]
    columns = min(COLUMNS, len(draws))
    rows = -(-len(draws) // columns)
    with canvas(path, 3.6 * columns + 0.2, 2.9 * rows) as figure:
        cells = [axes for line in grid(figure, rows, columns) for axes in line]
        for axes, draw in zip(cells, draws, strict=False):
            draw(axes)
        for axes in cells[len(draws) :]:
            axes.remove()


def _draw_histogram(axes: Axes, panel: Panel) -> None:
    known = [values for values in panel.series.values() if len(values)]
    edges, beyond = _edges(np.concatenate(known))
    for (name, values), (colour, dashes) in zip(panel.series.items(), SERIES, strict=False):
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(counts, edges, color=colour, linestyle=dashes, label=name)
    axes.set(
        title=panel.title, xlabel=panel.unit + (" (last bar: and more)" if beyond else ""), ylim=(0, None)
    )
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if len(panel.series) > 1:
        _legend(axes)


def _edges(values: Values) -> tuple[Values, bool]:
    """Bins from the least value to the 99.5 % percentile, so that one giant doesn't squeeze all others."""
    low, top = float(values.min()), float(values.max())
    high = float(np.quantile(values, 0.995))
    beyond = top > low + 1.5 * (high - low) and high > low
    high = high if beyond else top
    whole = bool((values == np.round(values)).all())
    if whole and high - low < BINS:
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5, beyond
    return np.linspace(low, high, BINS + 1), beyond


def _draw_grey(axes: Axes, grey: NDArray[np.int64], packed: Packed) -> None:
    share = 100 * grey / np.maximum(grey.sum(axis=1, keepdims=True), 1)
    equal = bool((grey == grey[0]).all())
    names = {"grey": SERIES[0]} if equal else dict(zip(("red", "green", "blue"), _RGB, strict=True))
    for channel, (name, (colour, dashes)) in enumerate(names.items()):
        axes.stairs(share[channel], np.arange(257) - 0.5, color=colour, linestyle=dashes, label=name)
        mean, std = 255 * packed.manifest.mean[channel], 255 * packed.manifest.std[channel]
        axes.errorbar(
            mean, -0.06 - 0.06 * channel, xerr=std, color=colour, fmt="o", capsize=3, markersize=4,
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    inner = share[:, 1:-1].max() if share[:, 1:-1].any() else share.max()
    axes.set(title="Shown values", xlim=(-4, 259), ylim=(0, min(share.max(), 2.5 * inner) * 1.05))
    axes.tick_params(axis="x", pad=6 + 7 * len(names))
    axes.set(xlabel="0 black, 255 white; point and bar: mean, deviation", ylabel="% of the pixels")
    if len(names) > 1:
        _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the plot's right end, where no curve runs."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, fontsize=8, handlelength=1.2,
                columnspacing=0.8, borderpad=0.1)  # fmt: skip


def draw_classes(packed: Packed, path: Path) -> None:
    """Share of each class in each split, a group of bars for each class, the largest on top."""
    manifest = packed.manifest
    splits = [s for s in manifest.splits if any(manifest.counts.get(s, {}).get(c) for c in manifest.classes)]
    total = {c: sum(manifest.counts[s].get(c, 0) for s in splits) for c in manifest.classes}
    shown = sorted(total, key=lambda name: -total[name])[:BARS]
    thick = 0.8 / max(len(splits), 1)
    with canvas(path, 8.2, 1.1 + (0.13 * len(splits) + 0.14) * len(shown)) as figure:
        axes = figure.subplots()
        for place, split in enumerate(splits):
            counts = [manifest.counts[split].get(name, 0) for name in shown]
            share = [100 * count / max(manifest.samples[split], 1) for count in counts]
            y = np.arange(len(shown)) - 0.4 + (place + 0.5) * thick
            colour = SERIES[place % len(SERIES)][0]
            axes.barh(
                y, share, height=0.9 * thick, color=colour, label=short(split), alpha=1 if place < 4 else 0.5
            )
            for at, value, count in zip(y, share, counts, strict=True):
                axes.annotate(f"{count:,}", (value, at), xytext=(3, 0), textcoords="offset points",
                              va="center", fontsize=7)  # fmt: skip
        axes.set_yticks(range(len(shown)), [short(name, 28) for name in shown])
        axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel="% of the split's samples; numbers: samples")
        axes.margins(x=0.08)
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=6, fontsize=9)


_RGB = (("#c0392b", "-"), ("#2e8b57", "--"), ("#4263a8", "-."))
