"""Pictures of images: patch colours, attention, augmented crops."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.report.features import Matrix, enlarge
from essa_dist.report.plotting import bare, canvas, grid, short
from essa_dist.report.samples import SIDE, Shown

Pixels = NDArray[np.uint8]
ROWS = ("image", "before", "after")


def draw_patch_colours(shown: Shown, before: Matrix, after: Matrix, path: Path) -> None:
    """Rows: images, patch colours before, after (colours [B, N, 3] from ``features.joint_colours``)."""
    rows: list[Matrix | Pixels] = [
        pixels(shown.images),
        overlay(shown.images, before),
        overlay(shown.images, after),
    ]
    with canvas(path, 1.75 * len(shown.names) + 0.4, 5.6) as figure:
        draw_rows(grid(figure, len(rows), len(shown.names)), rows, shown.names)


def draw_attention(shown: Shown, before: Tensor, after: Tensor, path: Path) -> None:
    """Rows: images, mean of the heads' CLS attention ([B, H, N]) before, after; one scale per column."""
    maps = [enlarge(part.double().mean(dim=1).numpy(), SIDE) for part in (before, after)]
    with canvas(path, 1.75 * len(shown.names) + 0.4, 5.6) as figure:
        cells = grid(figure, 3, len(shown.names))
        draw_rows(cells, [pixels(shown.images), *maps], shown.names)
        for place, top in enumerate(attention_tops(*maps)):
            for row in cells[1:]:
                row[place].images[0].set(cmap="inferno", clim=(0.0, top))


def attention_tops(before: Matrix, after: Matrix) -> list[float]:
    """Per image, the attention that is drawn brightest in both its maps ([B, S, S] each): their 95th percentile.

    Not the maximum: the few patches that ViTs use as registers (often corners) would darken all others.
    """
    return [float(np.percentile(pair, 95)) for pair in zip(before, after, strict=True)]


def draw_crops(views: Sequence[tuple[str, Sequence[Pixels]]], path: Path) -> None:
    """One row per kind of view: (name, pictures [h, w, 3])."""
    columns = max(len(images) for _, images in views)
    with canvas(path, 1.35 * columns + 0.6, 1.45 * len(views)) as figure:
        for cells, (name, images) in zip(grid(figure, len(views), columns), views, strict=True):
            for axes in cells:
                bare(axes)
            for axes, image in zip(cells, images, strict=False):
                axes.imshow(image, interpolation="nearest")
            cells[0].set_ylabel(name, fontsize=9)


def draw_rows(cells: list[list[Axes]], rows: Sequence[Matrix | Pixels], names: Sequence[str]) -> None:
    """Fill a grid of axes: one row of images per name in ``ROWS``, the names of the images on top."""
    for axes_row, images, row_name in zip(cells, rows, ROWS, strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            bare(axes)
            axes.imshow(image, interpolation="nearest")
        axes_row[0].set_ylabel(row_name, fontsize=11, fontweight="bold")
    for axes, name in zip(cells[0], names, strict=True):
        axes.set_title(short(name), fontsize=10, loc="center", fontweight="normal")


def pixels(images: Sequence[Tensor]) -> Pixels:
    """uint8 images [3, S, S] to [B, S, S, 3]."""
    return np.stack([image.permute(1, 2, 0).numpy() for image in images])


def overlay(images: Sequence[Tensor], rgb: Matrix, strength: float = 0.8) -> Matrix:
    """Patch colours [B, N, 3] laid over the grey images, [B, S, S, 3] in 0..1."""
    grey = pixels(images).mean(axis=-1, keepdims=True) / 255
    mixed: Matrix = strength * enlarge(rgb, images[0].shape[-1]) + (1 - strength) * grey
    return mixed.clip(0, 1)
