"""Pictures of samples: the contact sheet, and pairs of duplicates beside each other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from essa_dist.data.index import NONE
from essa_dist.packing.guards.findings import Pair
from essa_dist.packing.report.record import Packed
from essa_dist.packing.report.sample import Pixels, Shown, look
from essa_dist.report.plotting import bare, canvas, grid, short

COLUMNS = 6
PAIRS = 9
PAIR_COLUMNS = 3
TINTS = ((255, 196, 0), (0, 200, 255), (255, 64, 160), (120, 255, 80), (180, 120, 255))
"""Colours of the classes of masks after ``background``: bright ones, told apart on grey and on stained tissue."""


def draw_sheet(packed: Packed, shown: Sequence[Shown], path: Path) -> None:
    """Samples in rows of COLUMNS, each with its class and split above it."""
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    with canvas(path, 1.75 * columns, 2.05 * rows) as figure:
        cells = [axes for line in grid(figure, rows, columns) for axes in line]
        for axes in cells:
            bare(axes)
        for axes, one in zip(cells, shown, strict=False):
            _place(axes, one.pixels if one.mask is None else overlay(one.pixels, one.mask))
            split = packed.manifest.splits[packed.split[one.row]]
            title = f"{short(label(packed, one.row), 24)}\n{short(split, 24)}"
            axes.set_title(title, fontsize=8, loc="center", fontweight="normal")


def label(packed: Packed, row: int) -> str:
    """The class or classes of a sample, in words; its key where it has none."""
    classes = packed.manifest.classes
    if packed.index.labels is not None:
        names = [classes[i] for i in np.flatnonzero(packed.index.labels[row] == 1)]
        return ", ".join(names) or "none of the classes"
    number = int(packed.index.label[row])
    return packed.index.key[row] if number == NONE else classes[number]


def overlay(pixels: Pixels, mask: Pixels) -> Pixels:
    """The outline of each mask class in its colour, and its inside tinted a little; [h, w, 3]."""
    mixed = pixels.astype(np.float32)
    for number, tint in zip(range(1, int(mask.max()) + 1), _cycle(), strict=False):
        inside = mask == number
        strength = np.where(inside & ~_inner(inside), 1.0, np.where(inside, 0.18, 0.0))[:, :, None]
        mixed = mixed * (1 - strength) + np.array(tint, np.float32) * strength
    return mixed.round().astype(np.uint8)


def _cycle() -> list[tuple[int, int, int]]:
    return [TINTS[i % len(TINTS)] for i in range(255)]


def _inner(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbours are inside too."""
    padded = np.pad(inside, 1, mode="edge")
    inner: NDArray[np.bool_] = (
        inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    )
    return inner


def look_at_pairs(packed: Packed, pairs: Sequence[Pair]) -> list[tuple[Pair, Shown, Shown]]:
    """The first PAIRS pairs that are still in the set and can be read; of one picture's copies one."""
    of_each: dict[str, Pair] = {}
    for pair in pairs:
        of_each.setdefault(pair.a, pair)
    wanted = list(of_each.values())[:PAIRS]
    rows = _rows_of(packed, {key for pair in wanted for key in (pair.a, pair.b)})
    found = []
    for pair in wanted:
        if pair.a in rows and pair.b in rows:
            a, b = look(packed, rows[pair.a]), look(packed, rows[pair.b])
            if a is not None and b is not None:
                found.append((pair, a, b))
    return found


def draw_pairs(pairs: Sequence[tuple[Pair, Shown, Shown]], path: Path) -> None:
    """Each pair side by side, with splits and similarity above it."""
    columns = min(PAIR_COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    with canvas(path, 3.5 * columns, 2.2 * rows) as figure:
        cells = [axes for line in grid(figure, rows, 2 * columns) for axes in line]
        for axes in cells:
            bare(axes)
        for place, (pair, a, b) in enumerate(pairs):
            for axes, one, key, split in zip(
                cells[2 * place : 2 * place + 2], (a, b), (pair.a, pair.b), pair.splits, strict=True
            ):
                _place(axes, one.pixels)
                axes.set_title(short(split, 20), fontsize=8, loc="center", fontweight="normal")
                axes.set_xlabel(short(key, 26), fontsize=6.5)


def _place(axes: Axes, pixels: Pixels) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_box_aspect(1)
    axes.set_anchor("S")


def _rows_of(packed: Packed, keys: set[str]) -> dict[str, int]:
    """Rows of keys; a million keys take a second."""
    return {key: row for row, key in enumerate(packed.index.key) if key in keys} if keys else {}
