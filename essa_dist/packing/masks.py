"""Segmentation masks: whatever they were drawn with, stored as a PNG of class numbers.

Shapes: masks [H, W] uint8.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from essa_dist.packing.encode import png

Size = tuple[int, int]
"""Height, width."""


def encode_mask(mask: NDArray[np.uint8], image: Size, stored: Size) -> bytes:
    """PNG of ``mask``, reduced (nearest) as its image was, from ``image`` to ``stored`` pixels.

    Raises ValueError where it hasn't the size of the image.
    """
    if mask.shape != image:
        raise ValueError(
            f"its mask has {mask.shape[1]}x{mask.shape[0]} pixels, the image {image[1]}x{image[0]}"
        )
    if stored != image:
        mask = np.asarray(Image.fromarray(mask).resize((stored[1], stored[0]), Image.Resampling.NEAREST))
    return png(mask)


def read_mask(path: Path, classes: int) -> NDArray[np.uint8]:
    """Class numbers [H, W], below ``classes``. Of two classes, the second may be drawn as 255.

    Palette files hold the numbers themselves, whatever their colours. Raises ValueError, or what Pillow raises, where
    it is no such mask.
    """
    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError("its mask has more than one frame: save one mask for each image")
        grey = image.convert("RGB") if image.mode in ("RGBA", "CMYK", "YCbCr") else image
        values = np.asarray(grey.convert("L") if grey.mode == "LA" else grey)
    if values.ndim == 3:
        if (values != values[:, :, :1]).any():
            raise ValueError("its mask is in colour: save the number of the class as grey value instead")
        values = values[:, :, 0]
    present = np.unique(values)
    if classes == 2 and set(present.tolist()) <= {0, 255}:
        return (values > 0).astype(np.uint8)
    if present[0] < 0 or present[-1] >= classes:
        raise ValueError(
            f"its mask has the value {present[-1] if present[-1] >= classes else present[0]}: "
            f"class numbers go from 0 to {classes - 1}" + (", or are 0 and 255" if classes == 2 else "")
        )
    return values.astype(np.uint8)
