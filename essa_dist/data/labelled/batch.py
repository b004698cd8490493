"""One batch of labelled images, for training and for evaluation.

Shapes: B images on this rank, K classes, H x W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from essa_dist.data.batch import normalise
from essa_dist.data.labelled.labels import Labels, labels_of

__all__ = ["LabelledBatch", "Labels", "labels_of"]


@dataclass(frozen=True)
class LabelledBatch:
    """Images, what is known of them, and where they came from."""

    images: Tensor
    """[B, 3, H, W] uint8 0..255, or normalised float after :meth:`to`; then [B, 1, H, W] for grey trunks."""
    targets: Tensor
    """int64 [B] class numbers; or float32 [B, K] of 0, 1 and -1 (not known), or soft after mixing; or uint8 [B, H, W]
    class numbers with 255 = ignore."""
    indices: Tensor
    """[B] int64, numbers of the samples in their set; -1 in evaluation: a repeat that fills the batch, not to be counted."""
    keys: tuple[str, ...]
    """The B sample keys."""
    step: int
    """Global step, or number of the batch in evaluation; from 0."""
    bad: tuple[str, ...] = ()
    """``shard:key`` of samples that could not be decoded for this batch and were replaced."""
    why: tuple[str, ...] = ()
    """The reason for each of ``bad``."""
    fallback: int = 0
    """As in :class:`essa_dist.data.batch.Batch`; always 0."""

    def to(
        self,
        device: torch.device | str,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> "LabelledBatch":
        """Move to ``device`` and turn uint8 pixels into ``(x / 255 - mean) / std`` of type ``dtype``; see
        :func:`essa_dist.data.batch.normalise`. From pinned memory the copy does not wait."""
        return replace(
            self,
            images=normalise(self.images.to(device, non_blocking=True), mean, std, dtype),
            targets=self.targets.to(device, non_blocking=True),
            indices=self.indices.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "LabelledBatch":
        """Copy to page-locked memory, from which CUDA copies asynchronously. The DataLoader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            targets=self.targets.pin_memory(),
            indices=self.indices.pin_memory(),
        )

    def split(self, n: int) -> Iterator["LabelledBatch"]:
        """In ``n`` equal parts, in order. Raises ValueError where the images can't be divided so."""
        size, rest = divmod(len(self.images), n)
        if rest or not size:
            raise ValueError(f"{len(self.images)} images can't be cut into {n} equal micro-batches")
        for start in range(0, n * size, size):
            part = slice(start, start + size)
            yield replace(
                self,
                images=self.images[part],
                targets=self.targets[part],
                indices=self.indices[part],
                keys=self.keys[part],
            )
