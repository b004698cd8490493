"""One look for all pictures: colours, fonts, and a file writer that leaves no figure open."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase

BEFORE, AFTER = "#97a3b0", "#0b7a75"  # grey and teal: told apart without colour vision by lightness
SERIES = (("#0b7a75", "-"), ("#d1663f", "--"), ("#4263a8", "-."), ("#a0458d", ":"))
"""Colour and dashes of the curves in one plot: a curve that lies on another one still shows through."""

_STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5b6570",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7eb",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called "a$b": its name is text, never a formula
}


@contextmanager
def canvas(path: Path, width: float, height: float, dpi: int = 110) -> Iterator[Figure]:
    """Give a figure of ``width`` x ``height`` inches and write it to ``path`` at the end."""
    with rc_context(_STYLE):  # type: ignore[arg-type]  # the stubs list rc keys one by one
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the version of matplotlib in it, the same run gives the same bytes.
        figure.savefig(path, metadata={"Software": None})


def grid(figure: FigureBase, rows: int, columns: int) -> list[list[Axes]]:
    """Axes as nested lists, so that one row or one column needs no special case."""
    axes: list[list[Axes]] = figure.subplots(rows, columns, squeeze=False).tolist()
    return axes


def bare(axes: Axes) -> None:
    """Leave the frameless picture only: no ticks, no grid."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def short(text: object, limit: int = 18) -> str:
    """``text`` on one line, cut to ``limit`` characters, so that a long name can't push a plot away."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shorten(names: Sequence[object], limit: int = 18) -> list[str]:
    return [short(name, limit) for name in names]
