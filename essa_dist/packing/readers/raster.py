"""JPEG, PNG, WebP and BMP: kept byte for byte where they can be stored as they are.

Shapes: pixels [H, W] (grey) or [H, W, 3].
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from essa_dist.packing.frame import Frame, Pixels
from essa_dist.packing.readers.values import refuse_bomb

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Pillow opens an MPO as JPEG, and has no entry for it here."""
SUFFIX = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats, as Pillow names them, that are stored as they are. MPO: a JPEG with a preview behind it."""
LOSSY = ("JPEG", "MPO")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pixel types of at most 8 bits a channel."""
DEPTH_AT = 24  # of a PNG: bits a channel. Pillow's mode doesn't tell for colour
_WHO = (ExifTags.Base.Artist, ExifTags.Base.Copyright, ExifTags.Base.ImageDescription, ExifTags.Base.DateTime)


def read(path: Path) -> Iterator[Frame]:
    """The one picture of a file, upright. Alpha is dropped. Raises ValueError, or what Pillow raises."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind = image.format or ""
        refuse_bomb(image.width, image.height)
        if getattr(image, "n_frames", 1) > 1 and kind != "MPO":
            raise ValueError("more than one frame: save each as a file of its own first")
        flags = _flags(image)
        deep = kind == "PNG" and data[DEPTH_AT] == 16
        if not deep and image.mode not in MODES:
            raise ValueError(f"pixel type {image.mode} of a {kind} is not supported")
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if deep:
            pixels = _deep(data)
            stored = orientation == 1 and pixels.shape[2:] in ((), (3,))
            yield _frame(upright(pixels, orientation), "png" if stored else None, data, kind, flags)
            return
        turned = image if orientation == 1 else ImageOps.exif_transpose(image)
        grey = image.mode in ("1", "L", "LA")
        plain: Pixels = np.array(turned.convert("L" if grey else "RGB"))
        yield _frame(plain, SUFFIX.get(kind) if orientation == 1 else None, data, kind, flags)


def _frame(pixels: Any, suffix: str | None, data: bytes, kind: str, flags: tuple[str, ...]) -> Frame:
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[..., :3]  # colour and alpha
    elif pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = pixels[..., 0]  # grey and alpha
    return Frame(
        pixels=np.ascontiguousarray(pixels),
        as_is=(suffix, data) if suffix else None,
        lossy=kind in LOSSY,
        flags=flags,
    )


def _deep(data: bytes) -> Pixels:
    import imagecodecs  # Pillow reads 16-bit RGB as 8-bit without a word

    pixels: Pixels = imagecodecs.png_decode(data)
    return pixels


def upright(pixels: Any, orientation: int) -> Any:
    """Undo an orientation of TIFF and EXIF (TIFF 6.0, tag 274): 5 to 8 are transposed, then mirrored as 1 to 4."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def flags_in(data: bytes) -> tuple[str, ...]:
    """Findings about privacy in the metadata of an encoded picture."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _flags(image)


def _flags(image: Image.Image) -> tuple[str, ...]:
    """Metadata that may say who or where; it stays in a file that is stored as it is."""
    exif = image.getexif()
    found = set()
    if exif.get_ifd(ExifTags.IFD.GPSInfo):
        found.add("EXIF place filled in")
    if any(str(exif.get(tag) or "").strip() for tag in _WHO):
        found.add("EXIF author, date or description filled in")
    if "comment" in image.info or any(isinstance(value, str) for value in image.info.values()):
        found.add("comment or text in the file")
    return tuple(sorted(found))
