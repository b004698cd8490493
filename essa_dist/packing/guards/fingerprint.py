"""What is remembered of a picture to find it again: made while packing, a kilobyte each.

Shapes: shown pixels [H, W] (grey) or [H, W, 3], uint8; thumbnails [SIDE, SIDE].
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""Pixels of a thumbnail, whatever the shape of the picture: enough to tell two chest X-rays apart, see `near.py`."""
LOW = 8
"""Lowest frequencies a side that the perceptual hash keeps: 8 x 8 = 64 bits."""
BLANK_SPREAD = 1.0
"""Grey levels of 255: a picture whose values have a smaller standard deviation shows nothing."""

FINGERPRINT = np.dtype(
    [
        ("exact", "<u8", (2,)),
        ("perceptual", "<u8"),
        ("spread", "<f4"),
        ("thumbnail", "u1", (SIDE, SIDE)),
    ]
)
"""One row of a table of fingerprints, 1,052 bytes: an array of it can be saved, appended and mapped by numpy."""


class Fingerprint(NamedTuple):
    """Of one picture as it is shown. Small and picklable."""

    exact: bytes
    """16 bytes: the first of SHA-1 of height, width and pixels. Grey pixels stored as RGB have the hash of the grey
    ones. Chance alone makes no two alike; SHA-1 takes half the time of BLAKE2b, and nobody gains by a forgery."""
    perceptual: int
    """64 bits, the signs of the lowest frequencies about their median (pHash): nearly the same after rescaling,
    compression, or a change of brightness or contrast."""
    spread: float
    """Standard deviation of the luma, in grey levels (0..127.5)."""
    thumbnail: bytes
    """Luma averaged to SIDE x SIDE, row after row."""

    @property
    def blank(self) -> bool:
        """Whether the picture shows nothing."""
        return self.spread < BLANK_SPREAD


def fingerprint(shown: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of shown pixels; about 0.3 ms for 256 x 256 RGB, then in proportion to the pixels."""
    pixels = np.ascontiguousarray(_without_copies(shown))
    digest = hashlib.sha1(np.array(pixels.shape[:2], "<u4").tobytes(), usedforsecurity=False)
    digest.update(pixels.data)
    image = Image.fromarray(pixels)
    luma = image if image.mode == "L" else image.convert("L")
    small = np.asarray(luma.resize((SIDE, SIDE), Image.Resampling.BOX))
    counts = np.array(luma.histogram(), np.float64)
    return Fingerprint(digest.digest()[:16], _perceptual(small), _deviation(counts), small.tobytes())


def table_of(fingerprints: Sequence[Fingerprint]) -> NDArray[np.void]:
    """Fingerprints as rows of type FINGERPRINT, [n]."""
    rows = np.zeros(len(fingerprints), FINGERPRINT)
    for row, one in zip(rows, fingerprints, strict=True):
        row["exact"] = np.frombuffer(one.exact, "<u8")
        row["perceptual"], row["spread"] = one.perceptual, one.spread
        row["thumbnail"] = np.frombuffer(one.thumbnail, np.uint8).reshape(SIDE, SIDE)
    return rows


def _without_copies(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One channel where three are the same: grey pictures come as either, by format."""
    if pixels.ndim == 3 and all(
        np.array_equal(pixels[:, :, 0], pixels[:, :, c]) for c in range(1, pixels.shape[2])
    ):
        return pixels[:, :, 0]
    return pixels


def _perceptual(small: NDArray[np.uint8]) -> int:
    """pHash: which of the lowest LOW x LOW frequencies of the cosine transform are above their median.

    The mean (frequency 0) does not take part in the median. Source: C. Zauner, Implementation and benchmarking of
    perceptual image hash functions, 2010, section 3.2.1.
    """
    low = _COSINES @ small.astype(np.float32) @ _COSINES.T  # [LOW, LOW]
    above = low > np.sort(low.ravel()[1:])[(LOW * LOW - 1) // 2]  # numpy's median takes five times as long
    return int(np.packbits(above.ravel()).view(">u8")[0])


def _deviation(counts: NDArray[np.float64]) -> float:
    """Standard deviation of a histogram [256]."""
    values = np.arange(256)
    mean = counts @ values / counts.sum()
    return float(np.sqrt(max(counts @ (values - mean) ** 2 / counts.sum(), 0.0)))


def _cosines() -> NDArray[np.float32]:
    """The first LOW rows of the orthonormal cosine transform (type 2) of SIDE values."""
    rows = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(LOW)[:, None]) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows, np.float32)


_COSINES = _cosines()
