"""Shared decoded images: never another byte in a batch, whatever the file holds and whoever writes it at the same time."""

import copy
import errno
import io
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from essa_dist.data import decoded as module
from essa_dist.data.batch import Batch
from essa_dist.data.decoded import GIB, used
from essa_dist.data.index import read_index
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.quota import BadQuota
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.data.views import CropConfig
from essa_dist.packing.foreign import IndexConfig, index

CROPS = CropConfig(policy="medical", global_size=16, local_size=8, n_local=1)
STEPS, GLOBAL_BATCH = 4, 5
KINDS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen images of nine kinds in foreign tars: every depth, palettes, transparency, all sizes different."""
    root = tmp_path_factory.mktemp("foreign")
    rng = np.random.default_rng(3)
    for number in range(2):
        with tarfile.open(root / f"{number}.tar", "w") as tar:
            for kind in range(KINDS):
                grey = rng.integers(0, 256, (24 + kind, 31 + number), dtype=np.uint8)
                suffix, data = encoded(kind, Image.fromarray(grey), rng)
                member = tarfile.TarInfo(f"{number}{kind}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    index(IndexConfig(src=str(root), workers=1, report=False))
    return root


def encoded(kind: int, grey: Image.Image, rng: np.random.Generator) -> tuple[str, bytes]:
    """Suffix and bytes of a picture."""
    deep = (16 * np.asarray(grey)).astype(np.uint16)
    if kind == 0:
        return "png", imagecodecs.png_encode(deep)
    if kind == 1:
        return "png", imagecodecs.png_encode(np.stack([deep, deep // 2, deep // 3], axis=2))
    colour = Image.merge("RGB", [grey, grey.rotate(180), grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    modes = {2: grey, 3: colour, 4: colour, 5: grey, 6: colour.convert("P"), 7: colour.convert("RGBA")}
    suffix = "jpg" if kind in (4, 5) else "webp" if kind == 8 else "png"
    held = io.BytesIO()
    modes.get(kind, colour).save(held, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix])
    return suffix, held.getvalue()


def opened(folder: Path, kept: Path | str = "", gib: float = 1.0, window=None) -> PackedImages:
    return open_packed(str(folder), window=window).keep_decoded(str(kept), gib)


def batches(
    images: PackedImages, workers: int = 0, jitter: float = 0.3, quota: BadQuota | None = None
) -> list[Batch]:
    config = DataConfig(
        crops=CROPS, workers=workers, window_jitter=jitter, bad_sample_quota=quota or BadQuota()
    )
    loader = CropLoader(images, config, seed=1, global_batch=GLOBAL_BATCH, patch_size=4)
    return list(loader.batches(0, STEPS))


def same(ones: list[Batch], twos: list[Batch]) -> bool:
    return len(ones) == len(twos) == STEPS and all(
        (one.keys, one.step, one.bad, one.why) == (two.keys, two.step, two.bad, two.why)
        and torch.equal(one.global_crops, two.global_crops)
        and torch.equal(one.local_crops, two.local_crops)
        and torch.equal(one.masks, two.masks)
        for one, two in zip(ones, twos, strict=True)
    )


def there(images: PackedImages) -> list[int]:
    """The samples that are kept whole."""
    assert images.decoded is not None
    return [i for i in range(len(images)) if images.decoded.get(images.index, i) is not None]


@pytest.mark.parametrize(("workers", "jitter"), [(0, 0.0), (0, 0.3), (1, 0.3), (2, 0.3)])
def test_batches_are_the_same_when_images_are_kept_and_when_they_are_there(
    folder: Path, tmp_path: Path, workers: int, jitter: float
) -> None:
    without = batches(opened(folder), jitter=jitter)
    images = opened(folder, tmp_path)
    assert there(images) == []
    assert same(without, batches(images, workers, jitter))
    assert there(images) == list(range(2 * KINDS))
    assert same(without, batches(images, workers, jitter))


def test_what_is_there_is_neither_read_nor_announced_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = batches(opened(folder))
    batches(opened(folder, tmp_path))
    images = opened(folder, tmp_path)
    asked: list[int] = []
    for name in ("read", "ahead"):
        monkeypatch.setattr(images.storage, name, lambda ranges, uses=None: asked.extend(ranges) or [])
    assert same(without, batches(images))
    assert asked == []


@pytest.mark.parametrize("window", [(0, 100), (-50, 3000)])
def test_another_window_shows_the_same_kept_values_otherwise(
    folder: Path, tmp_path: Path, window: tuple[float, float]
) -> None:
    batches(opened(folder, tmp_path))
    plain, kept = opened(folder, window=window), opened(folder, tmp_path, window=window)
    for i in range(len(kept)):
        one, two = plain.decode(i), kept.decode(i)
        assert torch.equal(one, two)
        assert one.stride() == two.stride()
        two[:] = 0  # a tensor of one's own
        assert torch.equal(one, kept.decode(i))


def test_grey_images_take_one_channel(folder: Path, tmp_path: Path) -> None:
    images = opened(folder, tmp_path)
    batches(images)
    heights, widths = images.index.height.astype(int), images.index.width.astype(int)
    channels = np.where([images.keys[i][1] in "025" for i in range(len(images))], 1, 3)
    depth = np.where([images.keys[i][1] in "01" for i in range(len(images))], 2, 1)
    assert images.decoded.bytes(images.index) == int((heights * widths * channels * depth + 12).sum())


def test_copies_for_threads_and_other_processes_use_the_same_file(folder: Path, tmp_path: Path) -> None:
    images = opened(folder, tmp_path)
    images.decode(3)
    assert there(copy.copy(images)) == there(pickle.loads(pickle.dumps(images))) == [3]


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 7)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(5, len(data), 97):
        data[place] ^= 1
    path.write_bytes(data)


def _halve(path: Path) -> None:
    """Every write ended in its middle."""
    data = bytearray(path.read_bytes())
    for slot in data.split(module.MARK)[1:]:
        start = data.index(slot)
        data[start + len(slot) // 2 : start + len(slot)] = bytes(len(slot) - len(slot) // 2)
    path.write_bytes(data)


def _shift(path: Path) -> None:
    """Slots elsewhere: as of another layout."""
    path.write_bytes(bytes(64) + path.read_bytes())


def _swap(path: Path) -> None:
    """Whole slots, all of one size, in each other's place."""
    slots = path.read_bytes().split(module.MARK)[1:]
    path.write_bytes(module.MARK + module.MARK.join(slots[::-1]))


def _replace(path: Path) -> None:
    path.write_bytes(b"something else" * 1000)


@pytest.mark.parametrize("harm", [_truncate, _flip, _halve, _shift, _swap, _replace])
def test_a_file_that_was_harmed_is_not_trusted_and_is_mended(
    packed: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    without = batches(opened(packed))
    images = opened(packed, tmp_path / "kept")
    batches(images)
    harm(images.decoded.path)  # while it is open
    assert len(there(images)) < len(images)
    assert same(without, batches(images))
    assert there(images) == list(range(len(images)))


READER = """
import sys
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.shards import open_packed
from essa_dist.data.views import CropConfig
images = open_packed(sys.argv[1]).keep_decoded(sys.argv[2], 1)
config = DataConfig(crops=CropConfig(global_size=16, local_size=8), workers=2)
for batch in CropLoader(images, config, seed=0, global_batch=2, patch_size=4).batches(0, 10**6):
    print(batch.step, flush=True)
"""


def test_a_run_killed_in_the_middle_harms_nobody(folder: Path, tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", READER, folder, tmp_path], stdout=subprocess.PIPE)
    try:
        assert killed.stdout.readline() == b"0\n"
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
    assert used(tmp_path) > 0
    assert same(batches(opened(folder)), batches(opened(folder, tmp_path), workers=1))


def _decode_all(folder: Path, kept: Path, reverse: bool, results) -> None:
    images = opened(folder, kept)
    order = range(len(images))[::-1] if reverse else range(len(images))
    results.put({i: images.decode(i).numpy().tobytes() for _ in range(5) for i in order})


def test_processes_that_fill_it_at_the_same_time_all_see_the_right_pixels(
    folder: Path, tmp_path: Path
) -> None:
    images = opened(folder)
    right = {i: images.decode(i).numpy().tobytes() for i in range(len(images))}
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_decode_all, args=(folder, tmp_path, n % 2 == 1, results)) for n in range(4)
    ]
    for process in processes:
        process.start()
    assert all(results.get(timeout=60) == right for _ in processes)
    for process in processes:
        process.join(60)
    assert there(opened(folder, tmp_path)) == list(range(len(images)))


def test_what_is_beyond_the_budget_of_all_sets_is_not_kept_and_that_is_said_once(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without, kept = batches(opened(packed)), tmp_path / "kept"
    images = opened(packed, kept, gib=0.5 * 7 * 40 * 32 * 3 / GIB)
    assert "don't fit into data.decoded_gb" in caplog.text
    caplog.clear()
    for _ in range(2):
        assert same(without, batches(images))
    assert 0 < len(there(images)) < 7
    assert used(kept) <= images.decoded.budget
    assert caplog.text == ""
    other = kept / f"other{module.SUFFIX}"
    other.write_bytes(bytes(50_000))
    assert there(images) != []
    later = opened(packed, kept, gib=60_000 / GIB)
    assert "GiB of other sets" in caplog.text
    batches(later)
    assert len(there(later)) < 7
    other.unlink()
    batches(later)
    assert len(there(later)) == 7


@pytest.mark.parametrize("how", ["error", "short"])
def test_a_full_disk_switches_writing_off_with_one_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    without, write, calls = batches(opened(folder)), os.pwritev, []

    def full(file: int, buffers, offset: int) -> int:
        calls.append(offset)
        if len(calls) <= 3:
            return write(file, buffers, offset)
        if how == "error":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, [buffers[0], bytes(buffers[1])[:50]], offset)

    monkeypatch.setattr(os, "pwritev", full)
    images = opened(folder, tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert same(without, batches(images))
    assert [record.message for record in caplog.records] == [
        f"{images.decoded.path}: No space left on device; no more decoded images are kept there"
    ]
    assert (len(calls), len(there(images))) == (4, 3)


def test_a_folder_that_can_not_be_made_is_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    images = opened(folder, tmp_path / "file")
    assert images.decoded is None
    assert "images are decoded each time" in caplog.text
    assert same(batches(opened(folder)), batches(images))


def test_a_file_that_can_only_be_read_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened(folder, tmp_path).decode(2)
    open_file = os.open

    def read_only(path, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR and str(path).endswith(module.SUFFIX):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open_file(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)  # root may write to what chmod forbids
    images = opened(folder, tmp_path)
    assert "can only be read" in caplog.text
    assert same(batches(opened(folder)), batches(images))
    assert there(images) == [2]
    assert opened(folder, tmp_path / "none").decoded is None


def test_another_decoder_or_other_images_have_another_file_and_other_names_for_the_same_do_not(
    folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = opened(folder, tmp_path).decoded.path
    renamed = folder.rename(folder.with_name("renamed"))
    try:
        assert opened(renamed, tmp_path).decoded.path == path
    finally:
        renamed.rename(folder)
    assert opened(packed, tmp_path).decoded.path != path
    monkeypatch.setattr(module, "version", lambda name: "0")
    assert opened(folder, tmp_path).decoded.path != path


def test_broken_images_are_reported_as_ever_and_not_kept(packed: Path, tmp_path: Path) -> None:
    found = read_index(packed)
    images = opened(packed)
    with (packed / images.manifest.shards[int(found.shard[4])].file).open("r+b") as file:
        file.seek(int(found.offset[4]) + 30)
        file.write(b"\0" * 20)
    quota = BadQuota(count=1)
    without = batches(images, quota=quota)
    kept = opened(packed, tmp_path / "kept")
    for workers in (0, 2, 0):
        assert same(without, batches(kept, workers, quota=quota))
    assert any(batch.bad for batch in without)
    assert there(kept) == [0, 1, 2, 3, 5, 6]


def test_an_index_that_is_wrong_about_channels_costs_the_cache_and_no_pixels(
    folder: Path, tmp_path: Path
) -> None:
    plain, images = opened(folder), opened(folder, tmp_path)
    images.index.__dict__["channels"] = 4 - images.index.channels  # grey for coloured, and the reverse
    for i in range(len(images)):
        for _ in range(2):
            assert torch.equal(plain.decode(i), images.decode(i))


@pytest.mark.parametrize("other", [{"decoder": "dali"}, {"order": "stream"}])
def test_settings_that_have_no_use_for_it_are_refused_in_one_line(other: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=rf"decoded=DIR and \w+={next(iter(other.values()))} exclude"):
        DataConfig(decoded="DIR", **other)
