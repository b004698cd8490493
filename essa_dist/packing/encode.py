"""Turn one picture into what is stored: the file's own bytes where nothing has to change, else PNG or JPEG.

Shapes: pixels [H, W] (grey) or [H, W, 3], uint8 or uint16; masks [H, W] uint8.
"""

import io
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from essa_dist.data.pixels import PLAIN, Bounds, show
from essa_dist.packing.frame import Frame, Pixels

DEFAULT_QUALITY = 95
PNG_LEVEL = 4
"""Of zlib. 512x512 16-bit CT: 10 ms, 154 kB; level 6 takes 23 ms for 5 % less, level 9 125 ms for 7 % less."""
PERCENTILES = (0.005, 0.995)
"""Of the pixels of a 16-bit picture without a window: shown black below the first, white above the second."""

Histogram = NDArray[np.uint32]  # [3, 256], of shown values


class Encoding(NamedTuple):
    """How pictures are stored; the settings of the same names of ``PackConfig``."""

    image_size: int | None
    quality: int | None
    depth: Literal["keep", 8]


class Encoded(NamedTuple):
    """A picture as it goes into a tar, and what the index says of it."""

    suffix: str  # jpg, png or webp
    image: bytes
    height: int
    width: int
    channels: int
    bits: int
    bounds: Bounds
    slope: float
    intercept: float
    about: dict[str, Any]  # content of key.json; empty: none is written
    histogram: Histogram


def encode(frame: Frame, how: Encoding) -> tuple[Encoded, NDArray[np.uint8]]:
    """The picture as it is stored, and as it is shown ([H, W] or [H, W, 3]).

    It is reduced where it is too large, and written anew where anything changed.

    ``how.image_size``: a larger short side is reduced to it (Lanczos, aspect kept). 8-bit pictures of lossy files
    become JPEG, all others PNG; ``how.quality`` makes every 8-bit picture a JPEG; ``how.depth`` 8 shows 16-bit ones
    through their window once for all.
    """
    pixels = reduce(frame.pixels, how.image_size)
    bounds = find_bounds(frame, pixels)
    shown = show(pixels, bounds)
    histogram = _histogram(shown)
    slope, intercept = frame.slope, frame.intercept
    if how.depth == 8 and pixels.dtype == np.uint16:
        slope, intercept = slope * (bounds.high - bounds.low) / 255, slope * bounds.low + intercept
        pixels, bounds = shown, PLAIN
    if (
        frame.as_is is not None
        and pixels is frame.pixels
        and (how.quality is None or pixels.dtype != np.uint8)
    ):
        suffix, image = frame.as_is
    elif pixels.dtype == np.uint8 and (how.quality is not None or frame.lossy):
        suffix, image = "jpg", _jpeg(pixels, how.quality or DEFAULT_QUALITY)
    else:
        suffix, image = "png", png(pixels)
    height, width = pixels.shape[:2]
    encoded = Encoded(
        suffix=suffix,
        image=image,
        height=height,
        width=width,
        channels=1 if pixels.ndim == 2 else 3,
        bits=8 * pixels.dtype.itemsize,
        bounds=bounds,
        slope=slope,
        intercept=intercept,
        about=_about(frame, pixels, bounds, slope, intercept),
        histogram=histogram,
    )
    return encoded, shown


def find_bounds(frame: Frame, pixels: Pixels) -> Bounds:
    """The stored values shown black and white: those of the frame's window, else percentiles of 16-bit ``pixels``."""
    if frame.window is not None:
        low, high = sorted((real - frame.intercept) / frame.slope for real in frame.window)
        if low < high:
            return Bounds(low, high)
    if pixels.dtype == np.uint8:
        return PLAIN
    total = np.cumsum(np.bincount(pixels.reshape(-1), minlength=65536))
    low, high = (float(np.searchsorted(total, share * total[-1])) for share in PERCENTILES)
    if low < high:
        return Bounds(low, high)
    low, high = float(pixels.min()), float(pixels.max())
    return Bounds(low, max(high, low + 1))


def reduce(pixels: Pixels, image_size: int | None) -> Pixels:
    """Pixels whose short side is at most ``image_size``; the same array where it is already.

    16-bit values are reduced as floats, channel by channel: Pillow's own 16-bit mode rounds twice, and is up to 4 off.
    """
    size = reduced_size(pixels.shape[0], pixels.shape[1], image_size)
    if size == pixels.shape[:2]:
        return pixels
    height, width = size
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    channels = [
        np.asarray(
            Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.LANCZOS)
        )
        for channel in np.moveaxis(np.atleast_3d(pixels), 2, 0)
    ]
    smaller = np.stack(channels, axis=2).round().clip(0, 65535).astype(np.uint16)
    return smaller[:, :, 0] if pixels.ndim == 2 else smaller


def reduced_size(height: int, width: int, image_size: int | None) -> tuple[int, int]:
    """Height and width after a short side longer than ``image_size`` is reduced to it."""
    short = min(height, width)
    if image_size is None or short <= image_size:
        return height, width
    return max(image_size, round(height * image_size / short)), max(
        image_size, round(width * image_size / short)
    )


def png(pixels: Pixels) -> bytes:
    """PNG without loss. Same pixels, same bytes, for one version of imagecodecs and its zlib."""
    import imagecodecs

    # Z_FILTERED is made for filtered rows: 10 % smaller for colour pictures than the default strategy.
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=PNG_LEVEL, strategy=1))


def _jpeg(pixels: Pixels, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _histogram(shown: NDArray[np.uint8]) -> Histogram:
    # Pillow's, because numpy's bincount first widens every pixel to 64 bits: 7 times slower.
    counts = np.array(Image.fromarray(shown).histogram(), np.uint32).reshape(-1, 256)
    return np.broadcast_to(counts, (3, 256))


def _about(frame: Frame, pixels: Pixels, bounds: Bounds, slope: float, intercept: float) -> dict[str, Any]:
    """What ``key.json`` says; nothing where the values are a plain picture's."""
    plain = pixels.dtype == np.uint8 and bounds == PLAIN and (slope, intercept) == (1.0, 0.0)
    if plain and not frame.about:
        return {}
    window = sorted(slope * bound + intercept for bound in bounds)
    return {"about": frame.about, "slope": slope, "intercept": intercept, "window": window}
