"""Tiny labelled sets, made on the fly: single labels, several labels of patients, masks."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.packing.pack import PackConfig, pack


@pytest.fixture
def single(image_folder: Callable[..., Path], tmp_path: Path) -> PackedImages:
    """Eleven images of three classes: 5, 4 and 2."""
    out = tmp_path / "single"
    pack(
        PackConfig(
            src=str(image_folder({"a": 5, "b": 4, "c": 2}, name="classes")), out=str(out), report=False
        )
    )
    return open_packed(str(out))


@pytest.fixture
def multi(image_folder: Callable[..., Path], tmp_path: Path) -> PackedImages:
    """Twelve images of five patients with the columns x and y of 0, 1 and -1."""
    folder, out = image_folder({".": 12}, name="xrays"), tmp_path / "multi"
    table = tmp_path / "list.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "patient", "split", "x", "y"])
        rows.writerows([f"{i}.png", f"p{i % 5}", "train", i % 2, (1, 0, -1)[i % 3]] for i in range(12))
    pack(PackConfig(src=str(table), root=str(folder), out=str(out), report=False))
    return open_packed(str(out))


@pytest.fixture
def segmented(tmp_path: Path) -> PackedImages:
    """Nine images of several sizes, white where their masks have class 1, the last without mask; two classes."""
    rng = np.random.default_rng(5)
    for name in ("pictures/images", "pictures/masks"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(9):
        size = (24 + 8 * (i % 3), 40)
        mask = np.kron(rng.integers(0, 2, (size[0] // 8, 5)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(np.repeat(mask[:, :, None] * 255, 3, axis=2)).save(
            tmp_path / f"pictures/images/{i}.png"
        )
        if i < 8:
            Image.fromarray(mask).save(tmp_path / f"pictures/masks/{i}.png")
    pack(
        PackConfig(
            src=str(tmp_path / "pictures"),
            out=str(tmp_path / "segmented"),
            mask_classes=("ground", "cell"),
            report=False,
        )
    )
    return open_packed(str(tmp_path / "segmented"))
