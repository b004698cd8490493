"""Whether an exported folder, loaded as a stranger loads it, computes the features of the model it was made of."""

import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from essa_dist.backbones import Features
from essa_dist.errors import EssaError
from essa_dist.export.interface import Format, Reader, Subject

logger = logging.getLogger(__name__)

BATCHES = (1, 3)
"""Images at once; two sizes, so that a batch size that was written into a graph shows."""


def compare(form: Format, folder: Path, subject: Subject) -> dict[str, Any]:
    """Largest differences of class and patch tokens, at the native size and, where ``form`` allows it, at half.

    Raises ``EssaError`` if the difference at the native size is above the format's tolerance; at half of it, it is
    only reported.
    """
    reading = logging.getLogger("essa_dist.backbones")
    level = reading.level
    reading.setLevel(logging.WARNING)  # what is read is what was just written, from a place that goes away
    try:
        readers = form.load(folder)
    finally:
        reading.setLevel(level)
    found = _difference(readers, subject, subject.image_size)
    if not found <= form.TOLERANCE:  # written so that NaN fails
        raise EssaError(
            f"{form.READER} computes other features from the export: they differ by {found:.2g}, allowed is"
            f" {form.TOLERANCE:g}; nothing was written: compare the version of {form.LIBRARY}"
            f" ({importlib.metadata.version(form.LIBRARY)}) with that in constraints.txt"
        )
    result: dict[str, Any] = {"tolerance": form.TOLERANCE, "max_difference": found}
    if form.RESIZING:
        patch = subject.backbone.patch_size
        half = max(1, subject.image_size // 2 // patch) * patch
        resized = _difference(readers[:1], subject, half)
        if resized > form.TOLERANCE:
            logger.warning("at %d px %s changes features by %.2g", half, form.RESIZING, resized)
        result |= {"max_difference_resized": resized, "resized_to": half}
    return result


@torch.no_grad()
def _difference(readers: list[Reader], subject: Subject, image_size: int) -> float:
    """The largest over readers, batch sizes and both kinds of tokens."""
    shape = (max(BATCHES), subject.in_chans, image_size, image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours: Features = subject.backbone(images)
    found = [
        _relative(theirs, wanted[:n])
        for n in BATCHES
        for reader in readers
        for theirs, wanted in zip(reader(images[:n]), ours, strict=True)
    ]
    return float(torch.stack(found).max())  # unlike Python's max, it keeps a NaN


def _relative(theirs: Tensor, wanted: Tensor) -> Tensor:
    if theirs.shape != wanted.shape:
        return torch.tensor(torch.inf)
    return (theirs - wanted).abs().max() / wanted.abs().max().clamp(min=1)
