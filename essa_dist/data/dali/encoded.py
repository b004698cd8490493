"""What a worker does for DALI: check the encoded images, decode those that DALI can't, and draw their views."""

import io
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from essa_dist.data.dali.arguments import Array, arguments
from essa_dist.data.pixels import PLAIN
from essa_dist.data.rank_batches import Origin, RankBatches
from essa_dist.data.views import View, draw_views


class EncodedSample(NamedTuple):
    encoded: bytes
    views: list[View]
    fallback: bool  # decoded on the host; ``encoded`` is a PPM picture then


@dataclass(frozen=True)
class EncodedBatch:
    """A batch before it is decoded."""

    data: Tensor
    """uint8, the encoded images one after another: one piece of shared memory between processes."""
    ends: tuple[int, ...]
    """Where each of the B images ends in ``data``."""
    arguments: dict[str, Array]
    """[V, B, ...] numbers of the views."""
    origin: Origin
    fallback: int
    """Images among them that the host decoded."""

    def images(self) -> list[NDArray[np.uint8]]:
        """The B encoded images; views, nothing is copied."""
        return np.split(self.data.numpy(), self.ends[:-1])


class EncodedBatches(RankBatches[EncodedSample, EncodedBatch]):
    """The batches of ``data.decoder=dali`` as its workers make them."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.refused: set[int] = set()
        """Samples that DALI was seen to fail on, though their headers promised better."""

    def prepare(self, i: int, encoded: bytes | None, seed: int) -> EncodedSample:
        """See :class:`RankBatches`. The broken are found by checksum, by header, or by decoding on the host."""
        encoded = self.images.read(i) if encoded is None else encoded
        index = self.images.index
        height, width = int(index.height[i]), int(index.width[i])
        views = draw_views(self.crops, height, width, seed)
        plain = index.bits[i] == 8 and self.images.bounds(i) == PLAIN
        if (
            plain
            and i not in self.refused
            and zlib.crc32(encoded) == int(index.crc32[i])
            and dali_decodes(encoded, (height, width))
        ):
            return EncodedSample(encoded, views, fallback=False)
        pixels = self.images.decode(i, encoded=encoded, bounds=self.bounds(i, seed))
        return EncodedSample(as_ppm(pixels), views, fallback=True)

    def together(self, samples: list[EncodedSample], origin: Origin) -> EncodedBatch:
        """See :class:`RankBatches`."""
        return EncodedBatch(
            data=torch.frombuffer(bytearray().join(sample.encoded for sample in samples), dtype=torch.uint8),
            ends=tuple(int(end) for end in np.cumsum([len(sample.encoded) for sample in samples])),
            arguments=arguments([sample.views for sample in samples]),
            origin=origin,
            fallback=sum(sample.fallback for sample in samples),
        )


def dali_decodes(encoded: bytes, size: tuple[int, int]) -> bool:
    """Whether DALI, on a CPU and on a GPU, decodes these bytes to what Pillow makes of them, by their header.

    False too for what is not ``size`` (height, width) or no image at all: the decoder of the host says what is wrong.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            usual = image.mode in ("L", "RGB") and image.format in ("JPEG", "PNG", "WEBP")
            # JPEG files of RGB instead of YCbCr, which say so in Adobe's marker.
            usual &= image.mode == "L" or image.info.get("adobe_transform", 1) == 1
            usual &= image.format != "JPEG" or encoded.endswith(b"\xff\xd9")  # else it may be cut off
            return usual and (image.height, image.width) == size
    except Exception:  # a broken file makes decoders raise almost anything
        return False


def as_ppm(pixels: Tensor) -> bytes:
    """uint8 [3, H, W] as an uncompressed PPM file, which DALI decodes like any other."""
    _, height, width = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.permute(1, 2, 0).contiguous().numpy().tobytes()
