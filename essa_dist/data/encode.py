"""Turn one image file into what is stored: kept byte for byte where possible, checked to the last pixel always."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

STORED_SUFFIX = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats (as Pillow names them) that are stored as they are. MPO: a JPEG with a preview behind it."""
LOSSY = ("JPEG", "MPO")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pixel types of at most 8 bits a channel. Deeper ones need a window that only the user can choose."""
DEFAULT_QUALITY = 95
ORIENTATION = 0x0112  # EXIF tag


class Stored(NamedTuple):
    """An image as it goes into the tar, with the histogram of its pixels."""

    suffix: str
    data: bytes
    histogram: NDArray[np.int64]  # [3, 256]


def encode(data: bytes, *, image_size: int | None, quality: int | None) -> Stored:
    """Decode ``data`` wholly and return what to store.

    ``image_size``: a larger short side is reduced to it (Lanczos, aspect kept). ``quality``: every image becomes a
    JPEG of it; None: kept as it is where nothing has to change, else PNG (JPEG at 95 if it was a JPEG).
    Raises ValueError, or what Pillow raises, saying what is wrong with the file.
    """
    if not data:
        raise ValueError("empty file")
    try:
        return _encode(data, image_size, quality)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"more than {Image.MAX_IMAGE_PIXELS} pixels: cut it into tiles first") from error


@contextmanager
def strict_pillow() -> Iterator[None]:
    """While this is open, an image of too many pixels is an error, not a warning, and other warnings are kept quiet.

    For the main thread, around the threads that encode: filters of warnings belong to the whole process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _encode(data: bytes, image_size: int | None, quality: int | None) -> Stored:
    with Image.open(io.BytesIO(data)) as image:
        kind = image.format or ""
        if image.mode not in MODES:
            raise ValueError(f"pixel type {image.mode} is deeper than 8 bits: window it to 8 bits first")
        if getattr(image, "n_frames", 1) > 1 and kind != "MPO":
            raise ValueError("more than one frame: save each as a file of its own first")
        upright = image.getexif().get(ORIENTATION, 1) == 1
        pixels = (image if upright else ImageOps.exif_transpose(image)).convert(
            "L" if image.mode == "L" else "RGB"
        )
    smaller = _reduce(pixels, image_size)
    if upright and smaller is pixels and quality is None and kind in STORED_SUFFIX:
        return Stored(STORED_SUFFIX[kind], data, _histogram(pixels))
    if quality is None and kind not in LOSSY:
        return Stored("png", _save(smaller, "PNG"), _histogram(smaller))
    return Stored("jpg", _save(smaller, "JPEG", quality=quality or DEFAULT_QUALITY), _histogram(smaller))


def _reduce(image: Image.Image, image_size: int | None) -> Image.Image:
    short = min(image.size)
    if image_size is None or short <= image_size:
        return image
    width, height = (max(image_size, round(side * image_size / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _save(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    return buffer.getvalue()


def _histogram(image: Image.Image) -> NDArray[np.int64]:
    counts = np.array(image.histogram(), dtype=np.int64).reshape(-1, 256)
    return np.broadcast_to(counts, (3, 256))
