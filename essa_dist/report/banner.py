"""One wide picture of the result, for the first screen of a README."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import SubFigure

from essa_dist.report.bars import draw_side
from essa_dist.report.features import Matrix
from essa_dist.report.pictures import Pixels, draw_rows, overlay, pixels
from essa_dist.report.plotting import AFTER, BEFORE, canvas, grid
from essa_dist.report.record import PROTOCOLS, Pair
from essa_dist.report.samples import Shown

BANNER = "before_after.png"


def draw_banner(pairs: Sequence[Pair], shown: Shown, before: Matrix, after: Matrix, path: Path) -> None:
    """Bars of ``pairs`` (one per protocol) on the left, patch colours of the images on the right, 1200 x 420 pixels."""
    with canvas(path, 10, 3.5, dpi=120) as figure:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 2.05])[0]
        _draw_bars(left, pairs)
        rows: list[Matrix | Pixels] = [
            pixels(shown.images),
            overlay(shown.images, before),
            overlay(shown.images, after),
        ]
        draw_rows(grid(right, len(rows), len(shown.names)), rows, shown.names)


def _draw_bars(figure: SubFigure, pairs: Sequence[Pair]) -> None:
    axes = figure.subplots()
    for place, pair in enumerate(pairs):
        draw_side(axes, place - 0.2, pair.before, BEFORE, "before" if place == 0 else None)
        draw_side(axes, place + 0.2, pair.after, AFTER, "after" if place == 0 else None)
    axes.set_xticks(range(len(pairs)), [PROTOCOLS.get(pair.protocol, pair.protocol) for pair in pairs])
    axes.set(ylim=(0, 122), xlim=(-0.6, len(pairs) - 0.4), yticks=range(0, 101, 20))
    axes.set_title(f"Balanced accuracy (%), {pairs[0].setting}", fontsize=10)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper left", ncols=2, fontsize=9)
