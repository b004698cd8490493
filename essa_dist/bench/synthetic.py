"""Pictures made for measuring: as hard to decode and to compress as photographs and as CT slices are."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from essa_dist.data.shards import PackedImages, open_packed

JPEG_QUALITY = 90
CT_NOISE = 12.0
"""Standard deviation in stored values, of about 4000."""


def synthetic_set(kind: str, folder: Path, *, images: int, size: int) -> PackedImages:
    """Write and pack ``images`` pictures of ``size`` pixels; ``kind`` is ``jpeg8`` (RGB) or ``png16`` (grey)."""
    from essa_dist.packing.pack import PackConfig, pack

    source = folder / f"{kind}_images"
    source.mkdir(parents=True)
    for i in range(images):
        if kind == "jpeg8":
            pixels = np.stack([clouds(size, seed=3 * i + channel) for channel in range(3)], axis=2)
            Image.fromarray((255 * pixels).astype(np.uint8)).save(source / f"{i}.jpg", quality=JPEG_QUALITY)
        else:
            noise = np.random.default_rng(i).normal(0, CT_NOISE, (size, size))
            values = np.clip(4000 * clouds(size, seed=i) + noise, 0, 4095)
            Image.fromarray(values.astype(np.uint16)).save(source / f"{i}.png")
    out = folder / kind
    pack(PackConfig(src=str(source), out=str(out), report=False))
    return open_packed(str(out))


def clouds(size: int, *, seed: int) -> NDArray[np.float32]:
    """[size, size] in 0..1: noise at every scale, its amplitude proportional to the scale, as in photographs."""
    rng, total = np.random.default_rng(seed), np.zeros((size, size), np.float32)
    side = 4
    while side < size:
        coarse = Image.fromarray(rng.normal(0, 1 / side, (side, side)).astype(np.float32))
        total += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        side *= 2
    low, high = total.min(), total.max()
    scaled: NDArray[np.float32] = (total - low) / (high - low)
    return scaled
