"""A packed set of small images and a run that takes a second."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essa_dist import pack


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    out = tmp_path_factory.mktemp("set") / "packed"  # tests/faults makes its own
    pack(str(folder), out=str(out))
    return str(out)


@pytest.fixture
def recipe(packed: str, tmp_path: Path) -> list[str]:
    """Overrides of a run on one CPU thread; its folder is ``tmp_path / "run"``."""
    return [
        f"out={tmp_path / 'run'}",
        f"data.train={packed}",
        "duration=6",
        "batch_size=4",
        "precision=fp32",
        "device=cpu",
        "threads=1",
        "log_every=1",
        "backbone.name=test_vit",
        "backbone.weights=random",
        "objective.head={prototypes: 32, hidden: 16, bottleneck: 8}",
        "data.crops={policy: medical, global_size: 48, local_size: 32, n_local: 2}",
        "data.workers=0",
        "checkpoint.every=2",
        "optim.lr=1e-2",
    ]
