"""One training batch: what every decoder produces and every objective consumes.

Shapes: B samples on this rank, L local crops per sample (may be 0), H x W and h x w the pixels of a global and
a local crop, N the patches of a global crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Crops of B samples, and where they came from.

    The pixels are uint8 until :meth:`to` normalises them: a quarter of the bytes to pass between processes.
    """

    global_crops: Tensor
    """[2, B, 3, H, W] uint8 0..255, or normalised float after :meth:`to`."""
    local_crops: Tensor
    """[L, B, 3, h, w], as ``global_crops``."""
    masks: Tensor
    """[2, B, N] bool: the patches of each global crop that the student does not see."""
    keys: tuple[str, ...]
    """The B sample keys, so that a bad step can be traced to its images."""
    step: int
    """Global step, from 0."""
    bad: tuple[str, ...] = ()
    """``shard:key`` of samples that could not be decoded for this batch and were replaced."""

    def to(
        self,
        device: torch.device | str,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> "Batch":
        """Move to ``device`` and turn uint8 pixels into ``(x / 255 - mean) / std`` of type ``dtype``.

        Crops that are float already are only moved and cast. From pinned memory the copy does not wait.
        """
        return replace(
            self,
            global_crops=_normalise(self.global_crops.to(device, non_blocking=True), mean, std, dtype),
            local_crops=_normalise(self.local_crops.to(device, non_blocking=True), mean, std, dtype),
            masks=self.masks.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory, from which CUDA copies asynchronously. The DataLoader calls this."""
        return replace(
            self,
            global_crops=self.global_crops.pin_memory(),
            local_crops=self.local_crops.pin_memory(),
            masks=self.masks.pin_memory(),
        )


def _normalise(crops: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    if crops.dtype != torch.uint8:
        return crops.to(dtype)
    # One multiply and one add in fp32, then the cast: bf16 arithmetic would quantise the pixels twice.
    scale = torch.tensor([1 / (255 * s) for s in std], device=crops.device).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=crops.device).view(3, 1, 1)
    return crops.to(torch.float32).mul_(scale).add_(shift).to(dtype)
