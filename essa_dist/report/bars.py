"""Balanced accuracy before and after adaptation, with its confidence intervals."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from essa_dist.report.plotting import AFTER, BEFORE, canvas, grid
from essa_dist.report.record import PROTOCOLS, Pair, Result


def percent(result: Result) -> float:
    """Balanced accuracy, 0..100."""
    return 100.0 * float(result["balanced_accuracy"])


def error_bar(result: Result) -> list[list[float]]:
    """Distances [[down], [up]] in points from the value to its interval; zero where none was recorded."""
    low, high = result.get("interval") or (result["balanced_accuracy"],) * 2
    value = percent(result)
    return [[max(value - 100 * low, 0.0)], [max(100 * high - value, 0.0)]]


def draw_bars(pairs: Sequence[Pair], path: Path) -> None:
    """One plot per protocol, one group of two bars per evaluation setting."""
    protocols = list(dict.fromkeys(pair.protocol for pair in pairs))
    with canvas(path, max(5.2, 5.2 * len(protocols)), 4.0) as figure:
        for axes, protocol in zip(grid(figure, 1, len(protocols))[0], protocols, strict=True):
            draw_protocol(axes, [pair for pair in pairs if pair.protocol == protocol])


def draw_protocol(axes: Axes, pairs: Sequence[Pair]) -> None:
    """The groups of one protocol. The axis starts at 0: the length of a bar is its value."""
    for place, pair in enumerate(pairs):
        sides = ((pair.before, BEFORE, "before", -0.2), (pair.after, AFTER, "after", 0.2))
        for result, colour, name, shift in sides:
            draw_side(axes, place + shift, result, colour, name if place == 0 else None)
    names = [pair.setting.replace(", ", "\n") for pair in pairs]
    axes.set_xticks(range(len(pairs)), names)
    axes.set(title=PROTOCOLS.get(pairs[0].protocol, pairs[0].protocol), ylabel="balanced accuracy (%)")
    axes.set(ylim=(0, 118), xlim=(-0.75, len(pairs) - 0.25), yticks=range(0, 101, 20))
    axes.grid(visible=False, axis="x")
    _draw_chance(axes, pairs)
    axes.legend(loc="upper left", ncols=3, fontsize=9)


def draw_side(axes: Axes, x: float, result: Result, colour: str, name: str | None) -> None:
    """One bar at ``x`` with its interval and its number above."""
    value, error = percent(result), error_bar(result)
    style = {"ecolor": "#2b3138", "capsize": 4, "elinewidth": 1.3}
    axes.bar(x, value, width=0.36, color=colour, label=name, yerr=error, error_kw=style)
    top = value + error[1][0]
    axes.text(x, top + 1.5, f"{value:.1f}", ha="center", va="bottom", fontsize=10, fontweight="bold")


def _draw_chance(axes: Axes, pairs: Sequence[Pair]) -> None:
    classes = pairs[0].after.get("classes")
    if classes:
        level = 100 / len(classes)
        axes.axhline(level, color="#2b3138", linestyle=":", linewidth=1.2, label="chance")
