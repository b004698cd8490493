"""What the first bytes of an encoded image say of it, whatever its name: kind, size, channels, bits."""

import io
import math
from typing import Any, NamedTuple

from PIL import Image

from essa_dist.data.pixels import Bounds

MAX_PIXELS = 89_478_485
"""Of one image: Pillow's own limit. A header that claims more is refused before anything is unpacked."""
FORMATS = ("JPEG", "PNG", "WEBP")
"""Of Pillow, which are tried; its other readers never see the bytes."""
KINDS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats, as Pillow names them, that packed sets hold. MPO: a JPEG with a preview behind it."""
GREY_MODES = ("1", "L", "I;16", "I")
ORIENTATION = 0x0112  # EXIF tag
PNG_DEPTH, PNG_COLOUR = 24, 25  # offsets of the two bytes in IHDR, which every PNG begins with
PNG_GREY, PNG_RGB = 0, 2


class Header(NamedTuple):
    """An encoded image that has not been decoded."""

    kind: str
    """jpg, png or webp."""
    height: int
    width: int
    channels: int
    """1 or 3, as it is decoded: transparency is dropped, palettes are looked up."""
    bits: int
    """8 or 16."""
    upright: bool
    """False: its EXIF orientation asks viewers to turn it."""


def look(encoded: bytes) -> Header:
    """The header of ``encoded``. Raises ValueError where it is no image that a packed set can hold."""
    if not encoded:
        raise ValueError("empty file")
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large()) from error
    except Exception as error:  # a broken header makes Pillow raise almost anything
        raise ValueError(
            f"not an image of a known kind ({', '.join(dict.fromkeys(KINDS.values()))})"
        ) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(_too_large())
        kind = KINDS[image.format or ""]
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise ValueError("more than one frame")
        deep = kind == "png" and encoded[PNG_DEPTH] == 16  # Pillow shows 16-bit RGB as 8-bit without a word
        if deep and encoded[PNG_COLOUR] not in (PNG_GREY, PNG_RGB):
            raise ValueError("16 bits with transparency")
        channels = 1 if image.mode in GREY_MODES else 3
        upright = image.getexif().get(ORIENTATION, 1) == 1
        return Header(kind, image.height, image.width, channels, 16 if deep else 8, upright)


class Meaning(NamedTuple):
    """What the ``.json`` that `essa pack` writes beside an image says of its values."""

    slope: float
    intercept: float
    low: float
    """Real values (slope * stored value + intercept) shown black and white."""
    high: float

    def bounds(self, window: tuple[float, float] | None = None) -> Bounds:
        """The stored values shown black and white. ``window``: real values instead of those that the image brings."""
        low, high = sorted((real - self.intercept) / self.slope for real in window or (self.low, self.high))
        return Bounds(low, high)


def read_meaning(fields: Any) -> Meaning | None:
    """From what a ``.json`` holds; None: it is somebody else's."""
    try:
        low, high = fields["window"]
        meaning = Meaning(float(fields["slope"]), float(fields["intercept"]), float(low), float(high))
    except (KeyError, TypeError, ValueError):
        return None
    sensible = all(math.isfinite(value) for value in meaning) and meaning.slope and meaning.low < meaning.high
    return meaning if sensible else None


def _too_large() -> str:
    return f"more than {MAX_PIXELS} pixels: cut it into tiles first"
