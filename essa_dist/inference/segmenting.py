"""Predictions of masks: a PNG and an overlay for each picture, and a line with the areas of its classes.

Shapes: B images, H x W pixels of a picture, h x w as the model sees it, K classes.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import Tensor

from essa_dist.data.labelled.transforms import resized
from essa_dist.evaluation.metrics.scores import Scores
from essa_dist.inference.folder import write
from essa_dist.inference.overlay import COLOURS, overlay
from essa_dist.inference.predictor import Forward, Patients, Row, column
from essa_dist.inference.sliding import WindowConfig, sliding_logits
from essa_dist.inference.truth import Truth
from essa_dist.inference.work import One
from essa_dist.tasks.segmentation import Segmentation

MASKS, OVERLAYS = "masks", "overlays"
PNG_LEVEL = 1
"""Of zlib: an overlay of 256 x 320 takes 11 ms and 136 kB; at level 6, Pillow's own, 69 ms and 120 kB."""


class Scaled(NamedTuple):
    """A picture, as it is and as the model sees it."""

    pixels: Tensor  # uint8 [3, H, W]
    seen: Tensor  # uint8 [3, h, w]


class Segmenting:
    """See :class:`~essa_dist.inference.predictor.Predictor`."""

    def __init__(
        self, forward: Forward, truth: Truth, folder: Path, windows: WindowConfig, *, overlays: bool
    ) -> None:
        self._forward, self._truth, self._folder = forward, truth, folder
        self._windows, self._overlays = windows, overlays
        task = forward.model.task
        assert isinstance(task, Segmentation)
        self._task, self._data = task, forward.model.config.data
        patch = forward.model.backbone.patch_size
        self._slide(
            torch.zeros(1, 1, patch, patch), lambda x: x
        )  # windows that can't be are told before a start

    def prepare(self, pixels: Tensor) -> Scaled:
        """Scaled as the run's own test images are, and whole."""
        size, height, width = self._forward.model.image_size, *pixels.shape[1:]
        if self._data.evaluation == "whole":
            height = width = size
        elif self._data.evaluation == "centre_crop":
            factor = max(size, round(size / self._data.evaluation_share)) / min(height, width)
            height, width = max(size, round(height * factor)), max(size, round(width * factor))
        return Scaled(pixels, resized(pixels, None, height, width)[0].contiguous())

    def predict(self, batch: Sequence[One[Scaled]]) -> tuple[list[Row], list[Path]]:
        rows, files = [], []
        for one in batch:
            probabilities_1KHW = self._probabilities(one)
            mask_HW = self._task.predictions(probabilities_1KHW)[0].cpu().to(torch.uint8)
            target = self._truth.target(one.item)
            rows.append(self._row(one, mask_HW, probabilities_1KHW, target))
            files.append(self._write(MASKS, one.name, mask_HW.numpy(), indexed=True))
            if self._overlays:
                drawn = overlay(one.value.pixels, mask_HW, target).permute(1, 2, 0).numpy()
                files.append(self._write(OVERLAYS, one.name, drawn, indexed=False))
        return rows, files

    def table(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        lines = []
        for row in rows:
            height, width = row["size"]
            line: dict[str, Any] = {
                "key": row["key"],
                "mask": row["mask"],
                "height": height,
                "width": width,
            }
            for name, pixels in zip(self._task.classes, row["pixels"], strict=True):
                line |= {f"pixels_{name}": pixels, f"share_{name}": f"{pixels / (height * width):.6g}"}
            lines.append(line)
        return lines

    def score(self, rows: Sequence[Row], *, resamples: int, seed: int, patients: Patients) -> Scores:
        of_images = [row["truth"] for row in rows]
        columns = {name: column(of_images, name).double() for name in of_images[0]}
        return self._task.score_rows(columns, resamples=resamples, seed=seed, patients=patients)

    def _probabilities(self, one: One[Scaled]) -> Tensor:
        size = tuple(one.value.pixels.shape[1:])

        def logits(x: Tensor) -> Tensor:
            found = self._slide(x, self._forward.model.logits)
            if found.shape[-2:] == size:
                return found
            return F.interpolate(found, size=size, mode="bilinear", align_corners=False)

        return self._forward(one.value.seen[None], logits, keys=[one.key])

    def _slide(self, images: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
        return sliding_logits(
            logits,
            images,
            crop=self._windows.crop or self._forward.model.image_size,
            patch_size=self._forward.model.backbone.patch_size,
            stride=self._windows.stride,
            batch_size=self._windows.batch_size,
        )

    def _row(self, one: One[Scaled], mask_HW: Tensor, probabilities: Tensor, target: Tensor | None) -> Row:
        truth = None
        if target is not None:
            of_image = self._task.rows(probabilities, target[None].to(probabilities.device))
            truth = {name: values[0].tolist() for name, values in of_image.items()}
        return {
            "key": one.key,
            "item": one.item,
            "mask": f"{MASKS}/{one.name}.png",
            "size": list(mask_HW.shape),
            "pixels": torch.bincount(mask_HW.flatten().long(), minlength=self._task.n_outputs).tolist(),
            "truth": truth,
        }

    def _write(self, kind: str, name: str, pixels: NDArray[np.uint8], *, indexed: bool) -> Path:
        path = self._folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        if indexed:
            image.putpalette(_palette())
        content = io.BytesIO()
        image.save(content, "PNG", compress_level=PNG_LEVEL)
        write(path, content.getvalue())
        return path


def _palette() -> list[int]:
    """Black for the background, then the colours of overlays."""
    colours = [ImageColor.getrgb(COLOURS[(label - 1) % len(COLOURS)]) for label in range(1, 256)]
    return [0, 0, 0, *(value for colour in colours for value in colour[:3])]
