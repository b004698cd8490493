"""Sizes as functions of the batch, found in a single run.

A fake tensor takes no memory, so the run is made with a prime number of images and another prime of masked patches:
whatever is divisible by the first grows with the images, twice divisible with their square, and likewise the patches.
Rows of both, ``a * images + b * patches``, are told by what is left of a division. No width of a model is a multiple of
such primes, so one run tells every size at every batch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGES = 100_000_007
"""Images of a micro-batch in the run; a prime. The bytes of a matrix of images by images are below 2 ** 63."""
PATCHES = 1_000_000_007
"""Masked patches of a micro-batch in the run; a prime."""
_INVERSE = pow(PATCHES, -1, IMAGES)

Floats = NDArray[np.float64]


class Load(NamedTuple):
    """What a micro-batch of one rank holds."""

    images: float
    patches: float
    """Masked patches of its global crops, in the mean."""


class Size(NamedTuple):
    """``factor * images ** i * patches ** j + more * patches``; bytes, or operations."""

    factor: float
    i: int
    j: int
    more: float = 0.0

    def at(self, load: Load) -> float:
        return float(self.factor * load.images**self.i * load.patches**self.j + self.more * load.patches)

    @property
    def is_constant(self) -> bool:
        return not (self.i or self.j or self.more)


def size_of(number: int) -> Size:
    """``number`` of the run as a function of the batch. An element more, as of sums that begin with 0, is left out."""
    for more in ONE_MORE:
        found = _divided(number - more)
        if not found.is_constant:
            return found
    return Size(number, 0, 0)


ONE_MORE = (0, 1, 2, 4, 8)
"""Numbers, or bytes, of one element."""


def _divided(number: int) -> Size:
    if number > PATCHES and number % IMAGES and number % PATCHES:
        of_patches = number * _INVERSE % IMAGES
        of_images = (number - of_patches * PATCHES) // IMAGES
        if 0 < of_images < PATCHES:
            return Size(of_images, 1, 0, of_patches)
    i = j = 0
    while number and number % IMAGES == 0:
        number, i = number // IMAGES, i + 1
    while number and number % PATCHES == 0:
        number, j = number // PATCHES, j + 1
    return Size(number, i, j)


class Sizes:
    """Many of them, evaluated together."""

    def __init__(self, sizes: list[Size]) -> None:
        table = np.array(sizes, dtype=np.float64).reshape(-1, 4)
        self.factor, self.i, self.j, self.more = table.T

    def at(self, load: Load) -> Floats:
        found: Floats = self.factor * load.images**self.i * load.patches**self.j + self.more * load.patches
        return found
