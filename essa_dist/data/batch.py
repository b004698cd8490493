"""One training batch: what every decoder produces and every objective consumes.

Shapes: B samples on this rank, L local crops per sample (may be 0), H x W and h x w the pixels of a global and
a local crop, N the patches of a global crop.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from essa_dist.errors import UsageError

GREY = (0.299, 0.587, 0.114)
"""Red, green and blue in grey by ITU-R BT.601; their sum is 1, so grey images stay what they are."""


class TrainingBatch(Protocol):
    """What the loop knows of a batch, whatever is learnt from it."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The sample keys."""
        ...

    @property
    def step(self) -> int:
        """Global step, from 0."""
        ...

    @property
    def bad(self) -> tuple[str, ...]:
        """``shard:key`` of samples that could not be decoded for this batch and were replaced."""
        ...

    @property
    def fallback(self) -> int:
        """How many samples DALI left to the host."""
        ...

    def to(
        self,
        device: torch.device | str,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """On ``device``, with pixels normalised."""
        ...

    def split(self, n: int) -> Iterator[Self]:
        """In ``n`` equal parts, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Where the images of a batch came from, and what can be done with its tensors, which subclasses name."""

    AXES: ClassVar[Mapping[str, int]]
    """The tensors, and the axis of each along which the samples are."""
    PIXELS: ClassVar[frozenset[str]]
    """Those of them that are normalised."""

    keys: tuple[str, ...]
    """The B sample keys, so that a bad step can be traced to its images."""
    step: int
    """Global step, or number of the batch in evaluation; from 0."""
    bad: tuple[str, ...] = ()
    """``shard:key`` of samples that could not be decoded for this batch and were replaced."""
    why: tuple[str, ...] = ()
    """The reason for each of ``bad``."""
    fallback: int = 0
    """How many of the B samples DALI could not decode as they are stored, so that the host did (decoder=dali)."""

    def to(
        self,
        device: torch.device | str,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Move to ``device`` and turn uint8 pixels into ``(x / 255 - mean) / std`` of type ``dtype``, grey for
        statistics of one channel.

        Pixels that are float already are only moved and cast. From pinned memory the copy does not wait.
        """
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()}
        ready = {name: normalise(moved[name], mean, std, dtype) for name in self.PIXELS}
        return replace(self, **(moved | ready))

    def split(self, n: int) -> Iterator[Self]:
        """In ``n`` equal parts, in order. Raises ValueError where the images can't be divided so."""
        tensors = self._tensors()
        name, axis = next(iter(self.AXES.items()))
        images = tensors[name].shape[axis]
        size, rest = divmod(images, n)
        if rest or not size:
            raise ValueError(f"{images} images can't be cut into {n} equal micro-batches")
        for start in range(0, images, size):
            part = {name: tensor.narrow(self.AXES[name], start, size) for name, tensor in tensors.items()}
            yield replace(self, keys=self.keys[start : start + size], **part)

    def pin_memory(self) -> Self:
        """Copy to page-locked memory, from which CUDA copies asynchronously. The DataLoader calls this."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.AXES}


@dataclass(frozen=True)
class Batch(Samples):
    """Crops of B samples, and where they came from.

    The pixels are uint8 until :meth:`to` normalises them: a quarter of the bytes to pass between processes.
    """

    AXES: ClassVar[Mapping[str, int]] = {"global_crops": 1, "local_crops": 1, "masks": 1}
    PIXELS: ClassVar[frozenset[str]] = frozenset({"global_crops", "local_crops"})

    global_crops: Tensor
    """[2, B, 3, H, W] uint8 0..255, or normalised float after :meth:`to`; then [2, B, 1, H, W] for grey trunks."""
    local_crops: Tensor
    """[L, B, 3, h, w], as ``global_crops``."""
    masks: Tensor
    """[2, B, N] bool: the patches of each global crop that the student does not see."""


def normalise(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """uint8 [..., 3, H, W] to ``(x / 255 - mean) / std`` of type ``dtype``; [..., 1, H, W] for statistics of one channel.

    Float pixels are normalised already and only cast. Raises UsageError for statistics of neither 1 nor 3 channels.
    """
    check_channels(len(mean))
    if pixels.dtype != torch.uint8:
        return pixels.to(dtype)
    values = pixels.to(torch.float32)
    if len(mean) == 1:
        red, green, blue = values.unbind(-3)
        values = (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).unsqueeze(-3)
    # One multiply and one add in fp32, then the cast: bf16 arithmetic would quantise the pixels twice.
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels.device).view(-1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=pixels.device).view(
        -1, 1, 1
    )
    return values.mul_(scale).add_(shift).to(dtype)


def check_channels(in_chans: int) -> None:
    """Raise UsageError for a trunk whose channels can't be had from packed images."""
    if in_chans not in (1, 3):
        raise UsageError(
            f"backbone.in_chans={in_chans}: packed images have 3 channels, so use 3, or 1 for grey"
        )
