"""One picture as a reader of a file format hands it on.

Shapes: pixels [H, W] (grey) or [H, W, 3].
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Frame:
    """A picture with the meaning of its values.

    Values grow with brightness, always: a reader turns MONOCHROME1 and its like, and the slope becomes negative, so
    that ``real = slope * value + intercept`` holds (Hounsfield units for CT, ...).
    """

    pixels: Pixels
    part: str = ""
    """Which part of the file it is, e.g. ``f0003``, ``z0120``, ``x04096_y00512``; empty: the only one."""
    as_is: tuple[str, bytes] | None = None
    """Suffix (jpg, png, webp) and bytes of the file, where they can be stored unchanged: decoded by
    ``essa_dist.data.pixels`` they give ``pixels``."""
    lossy: bool = False
    """Whether it comes from a lossy format: what must be written anew may then be JPEG."""
    slope: float = 1.0
    intercept: float = 0.0
    window: tuple[float, float] | None = None
    """Real values shown as the two ends of the grey scale, lower first; None: 0..255 for 8 bits, and for 16 bits the
    0.5 % and 99.5 % percentiles of the picture."""
    about: dict[str, str | int | float] = field(default_factory=dict)
    """What may be known of the picture, and identifies nobody: modality, body part, view, pixel spacing in mm, ...
    Stored beside the image as ``key.json``."""
    flags: tuple[str, ...] = ()
    """Findings about privacy, as kinds and never as values, e.g. ``PatientName is filled``, ``BurnedInAnnotation YES``."""
