"""TIFF: each page a picture, of 1 to 32 bits, grey, palette or RGB.

Shapes: values [H, W] or [H, W, 3].
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from essa_dist.packing.frame import Frame
from essa_dist.packing.readers.raster import upright
from essa_dist.packing.readers.values import Values, refuse_bomb, store, type_limits

ORIENTATION = 274  # tag


def read(path: Path) -> Iterator[Frame]:
    """The pages of a file, but for reduced ones and masks. Raises ValueError, or what tifffile raises.

    Integers of up to 16 bits are exact, wider ones and floats where they span at most 65536 whole values; others are
    quantised page by page, off by at most 1/131070 of the page's range.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        pages = [page.aspage() for page in tiff.pages]
        pages = [page for page in pages if not (page.is_reduced or page.is_mask)]
        if tiff.is_imagej and len(pages) == 1 and len(tiff.series[0].shape) > pages[0].ndim:
            raise ValueError("an ImageJ stack in one page: save it as a multi-page TIFF")
        for number, page in enumerate(pages):
            yield _frame(page, f"p{number:04d}" if len(pages) > 1 else "")


def _frame(page: Any, part: str) -> Frame:
    import tifffile

    refuse_bomb(page.imagewidth, page.imagelength)
    photometric = page.photometric
    known = tifffile.PHOTOMETRIC
    jpeg = page.compression in (6, 7, 33003, 33005, 34712, 34892)  # codecs that turn YCbCr to RGB themselves
    if photometric not in (known.MINISWHITE, known.MINISBLACK, known.RGB, known.PALETTE) and not (
        photometric == known.YCBCR and jpeg
    ):
        raise ValueError(f"TIFF colours of type {photometric.name}: save it as grey or RGB")
    values = _interleaved(page)
    orientation = page.tags.valueof(ORIENTATION, default=1)
    values = upright(values, int(orientation))
    if photometric == known.PALETTE:
        colours = np.moveaxis(page.colormap, 0, -1)  # 16 bits, made for a screen
        values = ((colours.astype(np.uint32) + 128) // 257).astype(np.uint8)[values]
    bits = int(page.bitspersample) if photometric != known.PALETTE else 8
    limits = type_limits(values) if values.dtype != bool else (0, 1)
    if values.dtype.kind == "u" and bits < 8:
        limits = (0, (1 << bits) - 1)
    stored = store(np.ascontiguousarray(values), limits, turn=photometric == known.MINISWHITE)
    # Colours, and whole types of at most 8 bits, are shown whole; deeper grey by its percentiles.
    whole = values.ndim == 3 or bits <= 8
    low, high = sorted(stored.slope * end + stored.intercept for end in _ends(stored.pixels, limits))
    plain = (low, high) == (0.0, 255.0) and stored.pixels.dtype == np.uint8
    return Frame(
        pixels=stored.pixels,
        part=part,
        lossy=bool(jpeg),
        slope=stored.slope,
        intercept=stored.intercept,
        window=(low, high) if whole and not plain else None,
        about={"bits_stored": bits},
    )


def _ends(pixels: Any, limits: Any) -> tuple[float, float]:
    """The stored values of the ends of ``limits``."""
    span = limits[1] - limits[0]
    return 0.0, float(span if isinstance(span, int) and span <= 65535 else 65535)


def _interleaved(page: Any) -> Values:
    """Values [H, W] or [H, W, 3], alpha dropped; ValueError for other numbers of channels or dimensions."""
    if page.imagedepth != 1:
        raise ValueError(f"a TIFF page of {page.imagedepth} planes: save each as a page")
    samples = page.samplesperpixel
    alpha = len(page.extrasamples)
    if samples - alpha not in (1, 3) or alpha > 1:
        raise ValueError(
            f"{samples} channels ({alpha} extra): 1 or 3 are read, and an alpha channel; choose the channels first"
        )
    values: Values = page.asarray()
    if samples > 1:
        values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
        values = values[..., 0] if samples - alpha == 1 else values[..., :3]
    if values.dtype.kind not in "iufb":
        raise ValueError(f"TIFF values of type {values.dtype}: integers and floats are read")
    return values
