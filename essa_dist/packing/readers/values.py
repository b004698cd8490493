"""Values of any type into the 8 or 16 bits that a Frame stores, and windows over them.

Shapes: values and pixels [H, W] (grey) or [H, W, 3].
"""

import stat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.packing.frame import Pixels

Window = Literal["header", "full", "percentile"] | tuple[float, float]
"""Where the two ends of the grey scale lie; each owner's field says what it takes them from."""
Limits = tuple[int, int] | tuple[float, float]
Values = NDArray[Any]

PERCENTILES = (0.5, 99.5)
TOP = 65535


class Stored(NamedTuple):
    """Pixels whose values grow with brightness, and their meaning: ``real = slope * pixel + intercept``."""

    pixels: Pixels
    slope: float
    intercept: float


class NotWanted(ValueError):
    """Nothing is wrong with the file: it holds no pictures, or the settings leave it out."""


def refuse_special(path: Path) -> None:
    """ValueError for what is no ordinary file: to open a pipe would wait for ever. OSError where there is none."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not an ordinary file")


def refuse_bomb(width: int, height: int) -> None:
    """ValueError for a picture of more pixels than Pillow unpacks (or of none), before its pixels are read."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels: there is no picture")
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} are more than {limit} pixels: cut it into tiles first")


def limits_of(values: Values) -> Limits:
    """The lowest and the highest value; NaN and infinities are left out."""
    if np.issubdtype(values.dtype, np.floating):
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise ValueError("no pixel has a finite value")
        return float(finite.min()), float(finite.max())
    return int(values.min()), int(values.max())


def type_limits(values: Values) -> Limits:
    """The ends of an integer type of at most 16 bits, the same for every picture of it; else those of the values."""
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        info = np.iinfo(values.dtype)
        return int(info.min), int(info.max)
    return limits_of(values)


def store(
    values: Values, limits: Limits, *, slope: float = 1.0, intercept: float = 0.0, turn: bool = False
) -> Stored:
    """``values``, none outside ``limits``, as uint8 or uint16; ``turn``: the lowest becomes the brightest.

    ``slope`` and ``intercept`` give the real value of a given one. Integers are stored exactly where ``limits`` span
    at most 65536 of them. All else is quantised linearly: off by at most (high - low) / 131070. NaN becomes black.
    """
    low, high = limits
    step = 1.0
    whole = values.dtype.kind in "iub" and high - low <= TOP
    if whole:
        # Modulo 65536 the difference is right whatever the type of the values: one pass less than in a wider type.
        start = np.uint16(int(high if turn else low) % 65536)
        plain = values.astype(np.uint16)
        stored = start - plain if turn else plain - start
        pixels: Pixels = stored.astype(np.uint8) if high - low <= 255 else stored
    else:
        step = (high - low) / TOP or 1.0
        scaled = (values.astype(np.float64) - low) / step
        scaled = np.nan_to_num(TOP - scaled if turn else scaled, nan=0.0, posinf=TOP, neginf=0.0)
        pixels = np.clip(np.rint(scaled), 0, TOP).astype(np.uint16)
        if turn:
            high = low + TOP * step
    sign = -1.0 if turn else 1.0
    return Stored(pixels, sign * slope * step, intercept + slope * (high if turn else low))


def percentile_window(stored: Stored, keep: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Real values at :data:`PERCENTILES` of the picture (of the pixels in ``keep``), lower first."""
    return _to_real(stored, *_quantiles(_counts(stored.pixels, keep)))


def full_window(stored: Stored, keep: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """The lowest and the highest real value of the picture (of the pixels in ``keep``)."""
    present = np.flatnonzero(_counts(stored.pixels, keep))
    return _to_real(stored, int(present[0]), int(present[-1]))


def otsu(values: Values) -> float:
    """The threshold that separates values into the two most different classes; what lies above is foreground.

    Source: Otsu, IEEE Trans. SMC 9 (1979) 62, on a histogram of 256 bins.
    """
    counts, edges = np.histogram(values, bins=256)
    weight = np.cumsum(counts).astype(np.float64)
    moment = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * weight / weight[-1] - moment) ** 2 / (weight * (weight[-1] - weight))
    # Between two classes that don't touch, all thresholds are equally good: take the middle one.
    best = np.flatnonzero(np.isclose(between, np.nanmax(between[:-1], initial=0.0)))
    return float(edges[int(best[len(best) // 2]) + 1]) if best.size else float(edges[-1])


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an exception of a library says, fit for a table cell."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _counts(pixels: Pixels, keep: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    counted = pixels.reshape(-1) if keep is None or not keep.any() else pixels[keep]
    return np.bincount(counted)


def _quantiles(counts: NDArray[np.int64]) -> tuple[int, int]:
    total = np.cumsum(counts)
    low, high = (int(np.searchsorted(total, share / 100 * total[-1])) for share in PERCENTILES)
    return low, high


def _to_real(stored: Stored, low: float, high: float) -> tuple[float, float]:
    high = max(high, low + 1)  # a picture of one value
    ends = sorted((stored.slope * low + stored.intercept, stored.slope * high + stored.intercept))
    return ends[0], ends[1]
