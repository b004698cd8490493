"""Shared decoded images of a set at an address: what is decoded isn't asked for again, what isn't is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.remote import CacheConfig
from essa_dist.data.shards import PackedImages
from essa_dist.data.views import CropConfig
from essa_dist.packing.pack import PackConfig, pack

STEPS = 6


@pytest.fixture
def far(image_folder: Callable[..., Path], server: Any, tmp_path: Path) -> Callable[..., PackedImages]:
    """``far("decoded", bytes=0)`` opens a served set of seven images; keywords are settings of the cache of encoded ones."""
    source, out = image_folder({".": 7}), tmp_path / "served" / "images"
    pack(PackConfig(src=str(source), out=str(out), shard_bytes=20_000, report=False))

    def opened(decoded: str = "", near: bool = False, **cache: Any) -> PackedImages:
        config = DataConfig(
            train=str(out) if near else f"{server.url}/images",
            cache=CacheConfig(folder=str(tmp_path / "cache"), **cache),
        )
        return config.open().keep_decoded(str(tmp_path / decoded) if decoded else "", 1)

    return opened


def crops(images: PackedImages) -> torch.Tensor:
    config = DataConfig(crops=CropConfig(global_size=16, local_size=8, n_local=2), workers=0)
    loader = CropLoader(images, config, seed=0, global_batch=3, patch_size=4)
    return torch.stack([batch.global_crops for batch in loader.batches(0, STEPS)])


def test_a_remote_set_is_fetched_once_and_gives_the_batches_of_the_local_one(
    far: Callable[..., PackedImages], server: Any
) -> None:
    local = crops(far(near=True))
    assert torch.equal(crops(far("decoded", bytes=0)), local)
    again = far("decoded", bytes=0)  # the opening looks at the sizes of all tars
    asked = server.seen.copy()
    assert torch.equal(crops(again), local)
    assert server.seen == asked


def test_a_batch_of_which_a_part_is_decoded_fetches_and_caches_the_rest(
    far: Callable[..., PackedImages],
) -> None:
    images = far("decoded")
    for i in (1, 4, 5):
        images.decode(i)
    images = far("decoded")
    assert torch.equal(crops(images), crops(far(near=True)))
    assert images.storage.stats().misses == 4
