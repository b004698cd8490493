"""DALI's batches: those of the other decoder, but for colours by a few grey levels; repeatable, and never stuck."""

import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from essa_dist.data.batch import Batch
from essa_dist.data.dali.decoder import _Feed
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.quota import BadQuota
from essa_dist.data.rank_batches import Failed
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.data.views import POLICIES, CropConfig
from essa_dist.errors import DataError, UsageError

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

WriteSet = Callable[..., PackedImages]
SMALL = CropConfig(policy="medical", global_size=32, local_size=16, n_local=2)
BATCH, STEPS = 4, 3


@pytest.fixture(scope="module")
def cells(repository: Path) -> PackedImages:
    """Photographs of blood cells, 224 pixels."""
    return open_packed(f"{repository / 'assets' / 'blood_cells'}:test")


def batches(
    images: PackedImages, decoder: str = "dali", crops: CropConfig = SMALL, start: int = 0, **settings: object
) -> list[Batch]:
    return list(loader(images, decoder, crops, **settings).batches(start, STEPS))


def loader(
    images: PackedImages,
    decoder: str = "dali",
    crops: CropConfig = SMALL,
    *,
    batch: int = BATCH,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    **data: object,
) -> CropLoader:
    config = DataConfig(**{"decoder": decoder, "crops": crops, "workers": 0, **data})
    return CropLoader(
        images,
        config,
        seed=1,
        global_batch=batch,
        patch_size=4,
        rank=rank,
        world_size=world_size,
        device=device,
    )


def same(one: Batch, two: Batch) -> bool:
    tensors = ("global_crops", "local_crops", "masks")
    return (one.keys, one.step, one.bad, one.fallback) == (two.keys, two.step, two.bad, two.fallback) and all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in tensors
    )


def difference(one: Tensor, two: Tensor) -> Tensor:
    """Mean absolute difference of each crop, in grey levels."""
    return (one.float() - two.float()).abs().flatten(-3).mean(-1)


def describe(crops: Tensor) -> dict[str, Tensor]:
    """Of each crop [n, 3, s, s]: brightness, contrast, saturation (0..255) and log of the variance of its Laplacian."""
    x = crops.float()
    grey = x.mean(1)
    laplacian = (
        grey[:, 1:-1, :-2]
        + grey[:, 1:-1, 2:]
        + grey[:, :-2, 1:-1]
        + grey[:, 2:, 1:-1]
        - 4 * grey[:, 1:-1, 1:-1]
    )
    return {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "saturation": (x.amax(1) - x.amin(1)).mean((1, 2)),
        "sharpness": laplacian.var((1, 2)).add(0.1).log(),
    }


@pytest.mark.parametrize("policy", ["dinov2", "medical"])
def test_over_600_crops_both_decoders_have_the_same_distributions(cells: PackedImages, policy: str) -> None:
    crops = CropConfig(policy=policy, global_size=64, local_size=40, n_local=4)
    ours = batches(cells, "torchvision", crops, batch=36)
    dalis = batches(cells, "dali", crops, batch=36)
    for one, two in zip(ours, dalis, strict=True):
        assert one.keys == two.keys
        assert torch.equal(one.masks, two.masks)
    for name in ("global_crops", "local_crops"):
        a, b = (torch.cat([getattr(batch, name).flatten(0, 1) for batch in made]) for made in (ours, dalis))
        found, expected = describe(b), describe(a)
        for what, values in expected.items():
            allowed = 0.04 * values.std() + (1 if what != "sharpness" else 0.01)  # a grey level of its own
            assert abs(found[what].mean() - values.mean()) < allowed, (name, what)
            assert abs(found[what].std() / values.std() - 1) < 0.06, (name, what)
            # The very same views, so crop by crop too.
            assert torch.corrcoef(torch.stack([found[what], values]))[0, 1] > 0.97, (name, what)


@pytest.mark.parametrize("resize", [None, 96])
@pytest.mark.parametrize("policy", ["dinov2", "medical"])
def test_boxes_flips_turns_blur_grey_and_solarisation_are_exactly_the_same(
    cells: PackedImages, policy: str, resize: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All but jitter, and often; what is left differs by rounding alone.
    changed = {**POLICIES[policy].__dict__, "jitter": 0.0}
    monkeypatch.setitem(POLICIES, policy, POLICIES[policy].__class__(**changed))
    crops = CropConfig(policy=policy, global_size=64, local_size=24, n_local=2, resize=resize)
    for one, two in zip(
        batches(cells, "torchvision", crops, batch=16), batches(cells, "dali", crops, batch=16), strict=True
    ):
        assert difference(one.global_crops, two.global_crops).max() < 0.6
        assert difference(one.local_crops, two.local_crops).max() < 0.6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_in_the_middle_gives_the_same_bytes(cells: PackedImages, workers: int) -> None:
    whole = batches(cells)
    tail = batches(cells, start=1, workers=workers)
    assert [batch.step for batch in tail] == [1, 2]
    assert all(same(one, two) for one, two in zip(tail, whole[1:], strict=True))


def test_two_ranks_in_one_process_join_to_the_batch_of_one(cells: PackedImages) -> None:
    whole = batches(cells)
    ranks = [loader(cells, rank=rank, world_size=2).batches(0, STEPS) for rank in range(2)]
    for step, (left, right) in enumerate(zip(*ranks, strict=True)):
        assert left.keys + right.keys == whole[step].keys
        joined = torch.cat([left.global_crops, right.global_crops], dim=1)
        assert torch.equal(joined, whole[step].global_crops)


def test_no_local_crops_still_make_a_batch(cells: PackedImages) -> None:
    (batch, *_) = batches(cells, crops=SMALL.model_copy(update={"n_local": 0}))
    assert batch.local_crops.shape == (0, 4, 3, 16, 16)
    assert batch.global_crops.shape == (2, 4, 3, 32, 32)


def encode(i: int, kind: str, mode: str = "RGB", **settings: object) -> tuple[bytes, int, int]:
    pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((50, 40), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    image.convert(mode).save(sink, kind, **settings)
    return sink.getvalue(), 40, 50


def sixteen_bits(i: int) -> tuple[bytes, int, int]:
    smooth = Image.fromarray(np.random.default_rng(i).uniform(0, 4000, (4, 5)).astype(np.float32))
    values = np.asarray(smooth.resize((50, 40), Image.Resampling.BILINEAR)).astype(np.uint16)
    return bytes(imagecodecs.png_encode(values)), 40, 50


@pytest.mark.parametrize("window", ["header", (-500.0, 300.0)])
@pytest.mark.parametrize("window_jitter", [0, 0.3])
def test_16_bit_and_unusual_images_are_decoded_on_the_host_and_counted(
    write_set: WriteSet, window: object, window_jitter: float, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_set(
        [sixteen_bits(0), sixteen_bits(1), encode(2, "JPEG", "CMYK"), encode(3, "JPEG", "L")],
        bits=[16, 16, 8, 8],
        low=[1000, 0, 0, 0],
        high=[2000, 4000, 255, 255],
        slope=[0.5, 0.25, 1, 1],
        intercept=[-1000, -600, 0, 0],
    )
    images = open_packed(str(images.folder), window=None if window == "header" else window)
    with caplog.at_level(logging.INFO):
        dalis = batches(images, window_jitter=window_jitter)
    ours = batches(images, "torchvision", window_jitter=window_jitter)
    assert [batch.fallback for batch in dalis] == [3 if window == "header" else 4] * STEPS
    assert sum("the CPU decodes such" in record.message for record in caplog.records) == 1
    for one, two in zip(ours, dalis, strict=True):
        assert one.keys == two.keys
        assert difference(one.global_crops, two.global_crops).median() < 2
    plain = batches(images, "torchvision")
    assert all(same(one, two) for one, two in zip(ours, plain, strict=True)) == (window_jitter == 0)


def test_broken_images_are_replaced_as_the_other_decoder_does(write_set: WriteSet) -> None:
    stored = [encode(i, "JPEG") for i in range(7)]
    cut, half = stored[2][0][:500], bytearray(stored[4][0])
    stored[2] = (cut, 40, 50)  # never decodable, its checksum that of the cut file
    stored[5] = (stored[5][0], 41, 50)  # of another size than the index says
    images = write_set(stored)
    shard = images.folder / "train-000000.tar"
    with shard.open("r+b") as file:  # flipped bytes: of another checksum
        file.seek(int(images.index.offset[4]) + len(half) // 2)
        file.write(b"\0\1\2\3")
    ours, dalis = loader(images, "torchvision"), loader(images)
    for one, two in zip(ours.batches(0, 4), dalis.batches(0, 4), strict=True):
        assert (one.keys, one.bad) == (two.keys, two.bad)
    assert set(ours.bad) == set(dalis.bad) == {images.where(i) for i in (2, 4, 5)}


def test_what_dali_fails_on_though_its_header_is_good_is_found_and_costs_no_step(
    write_set: WriteSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = [encode(i, "PNG") for i in range(7)]
    for i in (1, 5):  # the header and the checksum are right, the pixels end too early
        stored[i] = (stored[i][0][: len(stored[i][0]) // 2], 40, 50)
    images = write_set(stored)
    ours, dalis = loader(images, "torchvision"), loader(images)
    whole = list(dalis.batches(0, 4))
    for one, two in zip(ours.batches(0, 4), whole, strict=True):
        assert (one.keys, one.bad) == (two.keys, two.bad)
    assert len(dalis.bad) == 2
    tail = list(loader(images, workers=1).batches(2, 4))
    assert all(same(one, two) for one, two in zip(tail, whole[2:], strict=True))


def test_more_broken_images_than_the_quota_allows_are_one_line(write_set: WriteSet) -> None:
    images = write_set([(b"nothing", 40, 50) if i < 3 else encode(i, "PNG") for i in range(7)])
    with pytest.raises(DataError, match=r"3 of 7 samples can't be decoded|in a row can't be decoded"):
        batches(images, bad_sample_quota=BadQuota(count=2, fraction=0))


def test_batches_before_a_failure_still_arrive(write_set: WriteSet) -> None:
    images = write_set([encode(i, "PNG") for i in range(8)])
    crops, seen = loader(images, workers=1), []
    made = crops.batches(0, 2000)
    seen.append(next(made).step)
    with (images.folder / "train-000000.tar").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=r"is damaged: expected \d+ bytes, found 100 bytes"):
        seen.extend(batch.step for batch in made)
    assert seen == list(range(len(seen)))
    assert crops.bad == ()


def test_after_a_rewind_come_the_same_batches_and_then_the_failure(cells: PackedImages) -> None:
    crops = loader(cells)
    crops._steps.range = range(2)
    encoded = crops._dali.encoded
    items = [*(encoded[request] for request in crops._steps), Failed("the disk is gone", ())]
    feed = _Feed(iter(items), encoded)

    def steps() -> Iterator[int]:
        with suppress(StopIteration):
            while True:
                feed.next()
                yield feed.running[-1].origin.request.step

    assert list(steps()) == [0, 1]
    assert feed.failed == items[-1]
    feed.rewind()
    assert list(steps()) == [0, 1]
    assert feed.failed == items[-1]


def test_without_dali_one_line_says_what_to_install(
    cells: PackedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)
    with pytest.raises(UsageError, match=r"pip install nvidia-dali-cuda130 .*data\.decoder=torchvision"):
        loader(cells)


def test_a_killed_worker_ends_the_batches_in_one_line(cells: PackedImages) -> None:
    made = loader(cells, workers=1).batches(0, 2000)
    next(made)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    with pytest.raises(
        (DataError, RuntimeError), match=r"(a data worker was|DataLoader worker .* is) killed"
    ):
        list(made)


@pytest.mark.parametrize("ending", ["pass", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"])
def test_a_program_that_ends_in_the_middle_of_the_batches_ends_at_once(
    cells: PackedImages, ending: str
) -> None:
    code = f"""
from essa_dist.data import CropConfig, CropLoader, DataConfig, open_packed
config = DataConfig(crops=CropConfig(global_size=16, local_size=8), workers=1, decoder="dali")
images = open_packed({str(cells.folder)!r} + ":test")
one, two = (CropLoader(images, config, seed=0, global_batch=4, patch_size=4).batches(0, 100) for _ in range(2))
next(one), next(two), print("begun")
{ending}
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False
    )
    assert b"begun" in done.stdout
    assert time.monotonic() - start < 40


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", ["dinov2", "medical"])
def test_the_gpu_makes_what_the_cpu_makes(cells: PackedImages, policy: str) -> None:
    crops = CropConfig(policy=policy, global_size=64, local_size=40, n_local=4)
    for one, two in zip(
        batches(cells, crops=crops, batch=16),
        batches(cells, crops=crops, batch=16, device="cuda"),
        strict=True,
    ):
        assert two.global_crops.device.type == two.local_crops.device.type == "cuda"
        assert one.keys == two.keys
        assert difference(one.global_crops, two.global_crops.cpu()).max() < 2
        assert difference(one.local_crops, two.local_crops.cpu()).max() < 2
    again = batches(cells, crops=crops, batch=16, device="cuda", start=2)
    assert same(again[0], two)
