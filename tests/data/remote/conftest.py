"""Packed sets of random bytes, and servers for them that misbehave on purpose."""

import hashlib
import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from essa_dist.data.index import NONE, Index
from essa_dist.data.manifest import Manifest, Shard
from essa_dist.data.remote import CacheConfig, RemoteShards, open_remote
from essa_dist.data.storage import LocalShards, Range

_spec = importlib.util.spec_from_file_location("faulty_server", Path(__file__).parent / "faulty_server.py")
assert _spec is not None
assert _spec.loader is not None
faulty_server = sys.modules["faulty_server"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faulty_server)

MakeSet = Callable[..., list[Range]]
OpenIt = Callable[..., RemoteShards]


def write_set(
    folder: Path,
    shards: tuple[int, ...] = (5, 7, 4),
    sizes: tuple[int, int] = (100, 9000),
    masks: bool = False,
    seed: int = 0,
) -> list[Range]:
    """A packed set with so many samples in each shard, of random bytes; with ``masks`` every second one has one.

    Returns the ranges of images, then of masks.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[Range] = []
    of_mask: list[Range] = []
    crcs, entries = [], []
    for number, count in enumerate(shards):
        tar = bytearray()

        def add(size: int, tar: bytearray = tar, number: int = number) -> Range:
            tar.extend(bytes(512) + rng.bytes(size))
            added = Range(number, len(tar) - size, size)
            tar.extend(bytes(-len(tar) % 512))
            return added

        for k in range(count):
            images.append(add(int(rng.integers(*sizes))))
            crcs.append(zlib.crc32(tar[images[-1].offset : images[-1].offset + images[-1].length]))
            of_mask.append(add(int(rng.integers(50, 900))) if masks and k % 2 else Range(number, NONE, 0))
        file = f"train-{number}.tar" if number < len(shards) - 1 else "val-0.tar"
        (folder / file).write_bytes(tar)
        digest = hashlib.sha256(tar).hexdigest()
        entries.append(Shard(file=file, split=file[:-6], count=count, bytes=len(tar), sha256=digest))
    n = len(images)
    Index(
        shard=np.array([one.shard for one in images], np.int32),
        offset=np.array([one.offset for one in images], np.int64),
        length=np.array([one.length for one in images], np.int64),
        crc32=np.array(crcs, np.uint32),
        height=np.full(n, 8, np.int32),
        width=np.full(n, 9, np.int32),
        channels=np.full(n, 3, np.uint8),
        bits=np.full(n, 8, np.uint8),
        low=np.zeros(n, np.float32),
        high=np.full(n, 255, np.float32),
        slope=np.ones(n, np.float32),
        intercept=np.zeros(n, np.float32),
        label=np.full(n, NONE, np.int32),
        patient=np.full(n, NONE, np.int32),
        mask_offset=np.array([one.offset for one in of_mask], np.int64),
        mask_length=np.array([one.length for one in of_mask], np.int64),
        key=[f"sample{i}" for i in range(n)],
    ).write(folder)
    Manifest(
        name="bytes",
        label_kind="none",
        classes=(),
        mask_classes=("background", "cell") if masks else (),
        splits=("train", "val"),
        shards=tuple(entries),
        counts={"train": {}, "val": {}},
        samples={"train": n - shards[-1], "val": shards[-1]},
        bits={"8": n},
        mean=(0, 0, 0),
        std=(1, 1, 1),
        source="",
        licence="",
        attribution="",
        skipped={},
    ).write(folder)
    return images + [one for one in of_mask if one.length]


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """``make_set()`` writes the set ``served/set`` and returns the ranges of all that it holds."""
    return lambda name="set", **options: write_set(tmp_path / "served" / name, **options)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """Serves the folder ``served``."""
    (tmp_path / "served").mkdir(exist_ok=True)
    with faulty_server.FaultyServer(tmp_path / "served") as running:
        yield running


@pytest.fixture
def open_it(server: Any, tmp_path: Path) -> OpenIt:
    """``open_it()`` opens the served set with a cache under tmp_path; keywords are settings of the cache."""

    def opened(url: str = "", **settings: Any) -> RemoteShards:
        defaults = {"folder": str(tmp_path / "cache"), "retries": 6, "timeout": 5.0}
        return open_remote(url or server.url + "/set", CacheConfig(**{**defaults, **settings}))

    return opened


@pytest.fixture
def local(tmp_path: Path) -> Callable[[], LocalShards]:
    """The served set, read from its folder: what every other way must equal."""
    from essa_dist.data.manifest import read_manifest

    folder = tmp_path / "served" / "set"
    return lambda: LocalShards(folder, read_manifest(folder).shards)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("essa_dist.data.remote.fetcher.FIRST_PAUSE", 0.005)
