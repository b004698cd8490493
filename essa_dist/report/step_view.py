"""``essa data show``: a picture of what one step of a run saw."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from pydantic import Field

from essa_dist import runfolder
from essa_dist.data.views import N_GLOBAL, Box
from essa_dist.report.plotting import SERIES, bare, canvas, grid, short
from essa_dist.report.record import read_record
from essa_dist.report.steps import SeenStep, seen_step
from essa_dist.settings import Config

HIDDEN = 0.35
"""Brightness of patches that the student doesn't see."""


class ShowStepConfig(Config):
    """Which step of which run. Needs `run`."""

    run: str
    """A run folder."""
    step: int = Field(default=1, ge=1)
    """The update, from 1, as metrics.jsonl and messages count."""
    first: int = Field(default=0, ge=0)
    """The first sample shown, of the step's batch over all ranks; a rank's samples lie together."""
    samples: int = Field(default=8, ge=1, le=64)
    """How many samples are shown."""
    locals: int = Field(default=8, ge=0)
    """How many local crops of each are shown."""
    data: str | None = None
    """Where the packed data set lies now; none: where the run found it."""
    out: str | None = None
    """PNG to write; none: `report/step_00000123.png` in the run folder."""


def show_step(config: ShowStepConfig) -> dict[str, Any]:
    """Draw samples, crop boxes, crops and masks of one step, and name its samples.

    The crops are those of ``data.decoder=torchvision``; DALI cuts the same boxes. Raises UsageError for what is no run,
    DataError where its data can't be read.
    """
    run = Path(config.run)
    seen = seen_step(
        read_record(run).config, config.step, first=config.first, count=config.samples, train=config.data
    )
    path = Path(config.out) if config.out else run / runfolder.REPORT / f"step_{config.step:08d}.png"
    draw_step(seen, path, locals_=config.locals)
    return {
        "picture": str(path),
        "step": config.step,
        "epoch": seen.positions[0] // len(seen.images),
        "positions": seen.positions,
        "samples": [seen.images.where(i) for i in seen.indices],
        "replaced": list(seen.batch.bad),
    }


def draw_step(seen: SeenStep, path: Path, *, locals_: int) -> None:
    """One row a sample: the image with the boxes of its crops, then the crops as the model gets them, before normalisation."""
    shown = min(locals_, len(seen.batch.local_crops))
    columns, rows = 1 + N_GLOBAL + shown, len(seen.indices)
    with canvas(path, 1.3 * columns + 1.2, 1.36 * rows + 0.3) as figure:
        for row, cells in enumerate(grid(figure, rows, columns)):
            for axes in cells:
                bare(axes)
            _image(cells[0], seen, row, shown)
            for view in range(N_GLOBAL):
                crop = _interleaved(seen.batch.global_crops[view, row].numpy())
                cells[1 + view].imshow(_hide(crop, seen.batch.masks[view, row].numpy()))
            for view in range(shown):
                cells[1 + N_GLOBAL + view].imshow(_interleaved(seen.batch.local_crops[view, row].numpy()))
            cells[0].set_ylabel(
                short(seen.batch.keys[row].rpartition("/")[2], 22),
                fontsize=7,
                rotation=0,
                ha="right",
                va="center",
            )
            if row == 0:
                names = ["image", *(f"global {i + 1}" for i in range(N_GLOBAL))]
                names += [f"local {i + 1}" for i in range(shown)]
                for axes, name in zip(cells, names, strict=True):
                    axes.set_title(name, fontsize=9, fontweight="normal", loc="center")


def _image(axes: Axes, seen: SeenStep, row: int, locals_: int) -> None:
    image = _interleaved(seen.images.decode(seen.indices[row]).numpy())
    side = seen.data.crops.resize
    height, width = (side, side) if side else image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), aspect="equal")
    for view in seen.views[row][N_GLOBAL : N_GLOBAL + locals_]:
        _box(axes, view.box, SERIES[1][0], 0.7)
    for view in seen.views[row][:N_GLOBAL]:
        _box(axes, view.box, SERIES[0][0], 1.6)


def _box(axes: Axes, box: Box, colour: str, width: float) -> None:
    axes.add_patch(
        Rectangle(
            (box.left, box.top),
            box.width,
            box.height,
            fill=False,
            edgecolor=colour,
            linewidth=width,
            clip_on=False,
        )
    )


def _interleaved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[3, H, W] to [H, W, 3]."""
    return pixels.transpose(1, 2, 0)


def _hide(crop: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Darken the masked patches (mask [N], N square) of a crop [H, H, 3]."""
    patches = int(np.sqrt(len(mask)))
    side = crop.shape[0] // patches
    hidden = mask.reshape(patches, patches).repeat(side, axis=0).repeat(side, axis=1)
    darkened: NDArray[np.uint8] = np.where(hidden[:, :, None], crop * HIDDEN, crop).astype(np.uint8)
    return darkened
