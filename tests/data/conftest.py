"""Tiny packed sets, made on the fly."""

from collections.abc import Callable
from pathlib import Path

import pytest

from essa_dist.packing.pack import PackConfig, pack


@pytest.fixture
def packed(image_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """Seven unlabelled images in three tars."""
    out = tmp_path / "packed"
    pack(PackConfig(src=str(image_folder({".": 7})), out=str(out), shard_bytes=20_000, report=False))
    return out
