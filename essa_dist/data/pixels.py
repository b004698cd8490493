"""Stored bytes to pixels: decode exactly, then show 8- or 16-bit values through a window.

Shapes: stored pixels [H, W] (grey) or [H, W, 3], uint8 or uint16.
"""

import io
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AfterValidator

if TYPE_CHECKING:
    from torch import Tensor

Stored = NDArray[np.uint8] | NDArray[np.uint16]


def _ordered(window: Literal["header"] | tuple[float, float]) -> Literal["header"] | tuple[float, float]:
    if window != "header" and not window[0] < window[1]:
        raise ValueError(f"the lower value comes first, got {window[0]:g}, {window[1]:g}")
    return window


Window = Annotated[Literal["header"] | tuple[float, float], AfterValidator(_ordered)]
"""A setting: the real values shown black and white, e.g. ``[-1000, 400]`` in Hounsfield units, or each image's own."""


class Bounds(NamedTuple):
    """The stored values that are shown black and white; what lies outside is clipped."""

    low: float
    high: float


PLAIN = Bounds(0.0, 255.0)
"""Bounds of an 8-bit picture that is shown as it is."""


def decode(encoded: bytes, *, bits: int, size: tuple[int, int], bounds: Bounds) -> "Tensor":
    """The picture as uint8 RGB [3, H, W], a view of interleaved pixels (the layout that resizes fastest).

    ``bits``, ``size`` (height, width): what the index says. Raises ValueError where the bytes are something else,
    before their pixels are unpacked (a decompression bomb), or whatever the decoder raises.
    """
    return picture(read_stored(encoded, bits=bits, size=size), bounds)


def picture(pixels: Stored, bounds: Bounds) -> "Tensor":
    """Stored values as uint8 RGB [3, H, W], a view of interleaved pixels."""
    import torch  # here: packing reads pixels too, in many short-lived processes

    shown = show(pixels, bounds)
    if shown.ndim == 2:
        shown = np.repeat(shown[:, :, None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(shown)).permute(2, 0, 1)


def read_stored(encoded: bytes, *, bits: int, size: tuple[int, int]) -> Stored:
    """The stored values, exactly: uint8 [H, W, 3] (grey ones repeated) or uint16 [H, W] or [H, W, 3]."""
    with Image.open(io.BytesIO(encoded)) as image:
        if (image.height, image.width) != size:
            raise ValueError(f"{image.width}x{image.height} pixels, not the {size[1]}x{size[0]} of the index")
        if bits == 8 and not _whole_jpeg(image, encoded):
            return np.array(image.convert("RGB"))
    import imagecodecs  # Pillow reads 16-bit RGB as 8-bit without a word

    if bits == 8:  # the same library and the same pixels as Pillow's, in half the time
        decoded: NDArray[np.uint8] = imagecodecs.jpeg8_decode(encoded, outcolorspace="RGB")
        return decoded

    pixels: Stored = imagecodecs.png_decode(encoded)
    if pixels.dtype != np.uint16 or pixels.shape[:2] != size:
        raise ValueError(f"{pixels.dtype} pixels, not the uint16 of the index")
    return pixels


def _whole_jpeg(image: Image.Image, encoded: bytes) -> bool:
    """Whether it is an ordinary JPEG with its end: imagecodecs would fill up a truncated one without a word."""
    return image.format == "JPEG" and image.mode in ("L", "RGB") and encoded.endswith(b"\xff\xd9")


def show(pixels: Stored, bounds: Bounds) -> NDArray[np.uint8]:
    """Stored values through a linear window: ``round(255 (v - low) / (high - low))``, clipped to 0..255."""
    if pixels.dtype == np.uint8 and bounds == PLAIN:
        return pixels.astype(np.uint8, copy=False)
    # A table of all values: one look-up a pixel, several times faster than arithmetic on the whole picture.
    values = np.arange(256 if pixels.dtype == np.uint8 else 65536, dtype=np.float32)
    scale = 255 / max(bounds.high - bounds.low, 1e-6)
    table = np.clip((values - bounds.low) * scale, 0, 255).round().astype(np.uint8)
    shown: NDArray[np.uint8] = table[pixels]
    return shown
