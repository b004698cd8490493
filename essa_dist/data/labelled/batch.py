"""One batch of labelled images, for training and for evaluation.

Shapes: B images on this rank, K classes, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from essa_dist.data.batch import Samples
from essa_dist.data.labelled.labels import Labels, labels_of

__all__ = ["LabelledBatch", "Labels", "labels_of"]


@dataclass(frozen=True)
class LabelledBatch(Samples):
    """Images, what is known of them, and where they came from."""

    AXES: ClassVar[Mapping[str, int]] = {"images": 0, "targets": 0, "indices": 0}
    PIXELS: ClassVar[frozenset[str]] = frozenset({"images"})

    images: Tensor
    """[B, 3, H, W] uint8 0..255, or normalised float after :meth:`to`; then [B, 1, H, W] for grey trunks."""
    targets: Tensor
    """int64 [B] class numbers; or float32 [B, K] of 0, 1 and -1 (not known), or soft after mixing; or uint8 [B, H, W]
    class numbers with 255 = ignore."""
    indices: Tensor
    """[B] int64, numbers of the samples in their set; -1 in evaluation: a repeat that fills the batch, not to be counted."""
