"""What ``essa predict`` asks of a kind of task, and what all of them share.

Shapes: B images, H x W pixels, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from essa_dist.data.batch import normalise
from essa_dist.errors import DivergedError
from essa_dist.evaluation.metrics.judged import Groups
from essa_dist.evaluation.metrics.scores import Scores
from essa_dist.finetune.model import FinetunedModel
from essa_dist.inference.work import One

Prepared = TypeVar("Prepared")
Row = dict[str, Any]
"""What is kept of a picture, of JSON's types; with its ``key`` and ``item``."""
Patients = Groups | None
"""[M] numbers; None: not known."""


class Predictor(Protocol[Prepared]):
    """A kind of task at work."""

    def prepare(self, pixels: Tensor) -> Prepared:
        """uint8 [3, H, W] to what the model needs, in a thread."""
        ...

    def predict(self, batch: Sequence[One[Prepared]]) -> tuple[list[Row], list[Path]]:
        """A row for each picture, and the files that were written."""
        ...

    def table(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The lines of predictions.csv."""
        ...

    def score(self, rows: Sequence[Row], *, resamples: int, seed: int, patients: Patients) -> Scores:
        """Of rows whose truth is known."""
        ...


class Forward:
    """Probabilities of a fine-tuned model, in eval mode on its device."""

    def __init__(self, model: FinetunedModel, device: torch.device, *, flip: bool, bf16: bool) -> None:
        self.model, self.device = model.to(device), device
        self._flip, self._bf16 = flip, bf16

    def __call__(self, images: Tensor, logits: Callable[[Tensor], Tensor], *, keys: Sequence[str]) -> Tensor:
        """fp32 [B, K] or [B, K, H, W] on the device, of uint8 [B, 3, H, W]; with ``flip`` the mean of those of the image
        and of its mirror image.

        Raises DivergedError where one is not finite.
        """
        backbone, task = self.model.backbone, self.model.task
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()
        with torch.inference_mode(), autocast:
            x = normalise(images.to(self.device), backbone.mean, backbone.std)
            probabilities = task.probabilities(logits(x))
            if self._flip:
                mirrored = task.probabilities(logits(x.flip(-1)))
                probabilities = (probabilities + (mirrored.flip(-1) if mirrored.ndim == 4 else mirrored)) / 2
        if not probabilities.isfinite().all():
            raise DivergedError(
                f"{self.model.checkpoint} gives probabilities that are not finite, for one of {', '.join(keys[:8])}: it "
                "has diverged, use an earlier checkpoint"
            )
        return probabilities


def column(rows: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """The values of all rows, fp32; null is NaN."""
    return torch.tensor([_numbers(row[name]) for row in rows])


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return float("nan") if value is None else float(value)
