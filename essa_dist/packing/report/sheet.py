"""Pictures of samples: the contact sheet, and pairs of duplicates beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import NONE
from essa_dist.packing.guards.findings import Pair
from essa_dist.packing.report.record import Packed
from essa_dist.packing.report.sample import SIDE, Pixels, Shown, look
from essa_dist.report.plotting import bare, canvas, short

COLUMNS = 6
DPI = 110
GAP, TITLE = 12, 42
"""Pixels between pictures, and above each for two lines of text."""
PAIRS = 9
PAIR_COLUMNS = 3
TINTS = ((255, 196, 0), (0, 200, 255), (255, 64, 160), (120, 255, 80), (180, 120, 255))
"""Colours of the classes of masks after ``background``: bright ones, told apart on grey and on stained tissue."""


class Tile(NamedTuple):
    """A picture with two lines above it."""

    pixels: Pixels
    title: str


def draw_sheet(packed: Packed, shown: Sequence[Shown], path: Path) -> None:
    """Samples in rows of COLUMNS, each with its class and split above it."""
    tiles = []
    for one in shown:
        split = packed.manifest.splits[packed.split[one.row]]
        pixels = one.pixels if one.mask is None else overlay(one.pixels, one.mask)
        tiles.append(Tile(pixels, f"{short(label(packed, one.row), 26)}\n{short(split, 26)}"))
    _draw_tiles(tiles, COLUMNS, path)


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
    """Each pair side by side, with keys and splits above it."""
    tiles = [
        Tile(one.pixels, f"{short(key, 26)}\n{short(split, 26)}")
        for pair, a, b in pairs
        for one, key, split in zip((a, b), (pair.a, pair.b), pair.splits, strict=True)
    ]
    _draw_tiles(tiles, 2 * PAIR_COLUMNS, path)


def _draw_tiles(tiles: Sequence[Tile], columns: int, path: Path) -> None:
    """All tiles as one picture, pixel for pixel: laying out as many axes takes seconds."""
    columns = min(columns, len(tiles))
    width, height = SIDE + GAP, SIDE + GAP + TITLE
    rows = -(-len(tiles) // columns)
    ground = np.full((rows * height, columns * width, 3), 255, np.uint8)
    with canvas(path, ground.shape[1] / DPI, ground.shape[0] / DPI, dpi=DPI) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        bare(axes)
        for place, tile in enumerate(tiles):
            top, left = place // columns * height + TITLE, place % columns * width + GAP // 2
            h, w = tile.pixels.shape[:2]
            y, x = top + (SIDE - h) // 2, left + (SIDE - w) // 2
            ground[y : y + h, x : x + w] = tile.pixels
            axes.text(
                left + SIDE / 2, top - 6, tile.title, fontsize=8.5, ha="center", va="bottom", clip_on=True
            )
        axes.imshow(ground, interpolation="nearest", aspect="auto")


def _rows_of(packed: Packed, keys: set[str]) -> dict[str, int]:
    """Rows of keys; a million keys take a second."""
    return {key: row for row, key in enumerate(packed.index.key) if key in keys} if keys else {}
