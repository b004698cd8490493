"""Tiny image folders and packed sets, made on the fly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essa_dist.data.pack import PackConfig, pack

ImageFolder = Callable[..., Path]


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """Smooth and coloured, so that no two are alike and JPEG keeps them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """``image_folder({"cat": 3, "dog": 2})`` makes a folder of PNG files ``cat/0.png`` ..."""

    def make(counts: dict[str, int], name: str = "images", suffix: str = "png") -> Path:
        root = tmp_path / name
        seed = 0
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(seed).save(root / folder / f"{i}.{suffix}")
                seed += 1
        return root

    return make


@pytest.fixture
def packed(image_folder: ImageFolder, tmp_path: Path) -> Path:
    """Seven unlabelled images in three tars."""
    out = tmp_path / "packed"
    pack(PackConfig(src=str(image_folder({".": 7})), out=str(out), shard_bytes=20_000))
    return out
