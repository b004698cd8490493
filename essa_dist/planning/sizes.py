"""Sizes as functions of the batch, found in a single run.

A fake tensor takes no memory, so the run is made with a prime number of images and another prime of masked patches:
whatever is divisible by the first grows with the images, twice divisible with their square, and likewise the patches.
No width of a model is a multiple of such primes, so one run tells every size at every batch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGES = 1_000_003
"""Images of a micro-batch in the run; a prime."""
PATCHES = 10_000_019
"""Masked patches of a micro-batch in the run; a prime."""

Floats = NDArray[np.float64]


class Load(NamedTuple):
    """What a micro-batch of one rank holds."""

    images: float
    patches: float
    """Masked patches of its global crops, in the mean."""


class Size(NamedTuple):
    """``factor * images ** i * patches ** j``; bytes, or operations."""

    factor: float
    i: int
    j: int

    def at(self, load: Load) -> float:
        return float(self.factor * load.images**self.i * load.patches**self.j)


def size_of(number: int) -> Size:
    """``number`` of the run as a function of the batch."""
    i = j = 0
    while number and number % IMAGES == 0:
        number, i = number // IMAGES, i + 1
    while number and number % PATCHES == 0:
        number, j = number // PATCHES, j + 1
    return Size(number, i, j)


class Sizes:
    """Many of them, evaluated together."""

    def __init__(self, sizes: list[Size]) -> None:
        table = np.array(sizes, dtype=np.float64).reshape(-1, 3)
        self.factor, self.i, self.j = table.T

    def at(self, load: Load) -> Floats:
        found: Floats = self.factor * load.images**self.i * load.patches**self.j
        return found
