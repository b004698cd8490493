"""A labelled set for canaries."""

import numpy as np
import pytest
from PIL import Image

from essa_dist import pack
from tests.engine.recording.probing import SIZE


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """37 images of three classes that differ little, so that k-NN errs."""
    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for i in range(37):
        label = i % 3
        pixels = rng.integers(0, 256, (5, 5, 3))
        pixels[..., label] = np.clip(pixels[..., label] + 40, 0, 255)
        folder = root / "images" / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        big = Image.fromarray(pixels.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        big.save(folder / f"{i:02d}.png")
    pack(str(root / "images"), out=str(root / "packed"))
    return str(root / "packed")
