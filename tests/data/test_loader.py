"""The loader's promises: the same bytes in the same order on any workers and ranks, resumable, honest about bad samples."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from essa_dist.data import workers as module
from essa_dist.data.augment import make_crops
from essa_dist.data.batch import Batch
from essa_dist.data.index import read_index
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.masks import MaskConfig
from essa_dist.data.plan import SamplePlan, sample_seed
from essa_dist.data.quota import BadQuota
from essa_dist.data.shards import open_packed
from essa_dist.data.steps import machine_slice
from essa_dist.data.storage import LocalShards, Range, Storage, Uses
from essa_dist.data.views import CropConfig
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.pack import PackConfig, pack

CROPS = CropConfig(policy="medical", global_size=16, local_size=8, n_local=2)
STEPS, GLOBAL_BATCH = 5, 4


def loader(packed: Path, workers: int = 0, quota: BadQuota | None = None, **settings: int) -> CropLoader:
    config = DataConfig(crops=CROPS, workers=workers, bad_sample_quota=quota or BadQuota())
    arguments = {"seed": 1, "global_batch": GLOBAL_BATCH, "patch_size": 4, **settings}
    return CropLoader(open_packed(str(packed)), config, **arguments)


def same(one: Batch, two: Batch) -> bool:
    tensors = ("global_crops", "local_crops", "masks")
    return (one.keys, one.step) == (two.keys, two.step) and all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in tensors
    )


def join(parts: list[Batch]) -> Batch:
    """The batches of all ranks, as one."""
    return Batch(
        global_crops=torch.cat([part.global_crops for part in parts], dim=1),
        local_crops=torch.cat([part.local_crops for part in parts], dim=1),
        masks=torch.cat([part.masks for part in parts], dim=1),
        keys=tuple(key for part in parts for key in part.keys),
        step=parts[0].step,
    )


def break_image(packed: Path, i: int) -> str:
    """Overwrite the first bytes of sample ``i`` in its tar; returns its ``shard:key``."""
    images, index = open_packed(str(packed)), read_index(packed)
    with (packed / images.manifest.shards[int(index.shard[i])].file).open("r+b") as file:
        file.seek(int(index.offset[i]))
        file.write(b"\0" * 64)
    return images.where(i)


def test_batches_follow_the_plan_with_the_crops_of_each_position(packed: Path) -> None:
    images, plan = open_packed(str(packed)), SamplePlan(7, seed=1)
    for step, batch in enumerate(loader(packed).batches(0, STEPS)):
        for place, index in enumerate(plan.indices(step, GLOBAL_BATCH)):
            globals_, locals_ = make_crops(
                images.decode(index), CROPS, sample_seed(1, step * GLOBAL_BATCH + place)
            )
            assert batch.keys[place] == images.keys[index]
            assert torch.equal(batch.global_crops[:, place], globals_)
            assert torch.equal(batch.local_crops[:, place], locals_)


def test_shapes_and_types_are_those_of_the_contract(packed: Path) -> None:
    batch = next(loader(packed).batches(3, 4))
    assert batch.global_crops.shape == (2, 4, 3, 16, 16)
    assert batch.local_crops.shape == (2, 4, 3, 8, 8)
    assert batch.masks.shape == (2, 4, 16)
    assert (batch.global_crops.dtype, batch.masks.dtype, batch.step) == (torch.uint8, torch.bool, 3)


def test_no_local_crops_still_make_a_batch(packed: Path) -> None:
    config = DataConfig(crops=CROPS.model_copy(update={"n_local": 0}), workers=0)
    images = open_packed(str(packed))
    batch = next(CropLoader(images, config, seed=0, global_batch=2, patch_size=4).batches(0, 1))
    assert batch.local_crops.shape == (0, 2, 3, 8, 8)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(packed: Path, workers: int) -> None:
    alone = list(loader(packed).batches(0, STEPS))
    helped = list(loader(packed, workers).batches(0, STEPS))
    assert len(helped) == STEPS
    assert all(same(one, two) for one, two in zip(alone, helped, strict=True))


def test_threads_of_the_process_change_nothing(packed: Path) -> None:
    threads = torch.get_num_threads()
    one = list(loader(packed).batches(0, 2))
    torch.set_num_threads(2)
    try:
        two = list(loader(packed).batches(0, 2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_batches_of_all_ranks_join_to_that_of_one(packed: Path, world_size: int) -> None:
    whole = list(loader(packed).batches(0, STEPS))
    ranks = [
        list(loader(packed, rank=rank, world_size=world_size).batches(0, STEPS)) for rank in range(world_size)
    ]
    assert all(
        same(join(list(parts)), batch) for parts, batch in zip(zip(*ranks, strict=True), whole, strict=True)
    )


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (3, 2), (4, 0)])
def test_going_on_at_any_step_gives_the_same_tail(packed: Path, start: int, workers: int) -> None:
    whole = list(loader(packed).batches(0, STEPS))
    tail = list(loader(packed, workers).batches(start, STEPS))
    assert len(tail) == STEPS - start
    assert all(same(one, two) for one, two in zip(tail, whole[start:], strict=True))


def test_a_loader_can_be_asked_again_even_if_it_was_left_in_the_middle(packed: Path) -> None:
    crops = loader(packed, workers=1)
    first = crops.batches(0, STEPS)
    next(first)
    second = crops.batches(2, STEPS)
    begun = next(second)
    del first  # must not end the workers of the second
    assert [begun.step, *(batch.step for batch in second)] == [2, 3, 4]


def test_the_seed_changes_order_crops_and_masks(packed: Path) -> None:
    one, two = (next(loader(packed, seed=seed).batches(0, 1)) for seed in (1, 2))
    assert one.keys != two.keys
    assert not torch.equal(one.global_crops, two.global_crops)
    assert not torch.equal(one.masks, two.masks)


def test_half_the_global_crops_of_a_global_batch_are_masked(packed: Path) -> None:
    for batch in loader(packed).batches(0, STEPS):
        assert int(batch.masks.any(dim=2).sum()) == GLOBAL_BATCH


def test_masking_can_be_turned_off(packed: Path) -> None:
    config = DataConfig(crops=CROPS, workers=0, masks=MaskConfig(probability=0))
    images = open_packed(str(packed))
    assert not next(
        CropLoader(images, config, seed=0, global_batch=2, patch_size=4).batches(0, 1)
    ).masks.any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_by_the_next_counted_and_logged_once(
    packed: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    images = open_packed(str(packed))
    where = break_image(packed, 2)
    crops = loader(packed, workers)
    expected = [
        tuple(
            images.keys[3 if index == 2 else index]
            for index in SamplePlan(7, seed=1).indices(step, GLOBAL_BATCH)
        )
        for step in range(STEPS)
    ]
    seen = list(crops.batches(0, STEPS))
    assert [batch.keys for batch in seen] == expected
    assert crops.bad == (where,)
    assert sum(where in batch.bad for batch in seen) >= 2  # the sample comes in every epoch
    assert sum("can't decode" in record.message for record in caplog.records) == 1
    assert where in caplog.text


def test_replacement_does_not_depend_on_ranks_or_workers(packed: Path) -> None:
    for i in (0, 1, 6):  # the last one is replaced by the first that can be decoded from the start
        break_image(packed, i)
    whole = list(loader(packed).batches(0, STEPS))
    ranks = [
        list(loader(packed, workers=rank, rank=rank, world_size=2).batches(0, STEPS)) for rank in range(2)
    ]
    assert all(
        same(join(list(parts)), batch) for parts, batch in zip(zip(*ranks, strict=True), whole, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_more_bad_samples_than_the_quota_are_one_line_with_the_first_keys(packed: Path, workers: int) -> None:
    broken = [break_image(packed, i) for i in (1, 4)]
    crops = loader(packed, workers, quota=BadQuota(count=1, fraction=0))
    with pytest.raises(
        DataError, match=r"2 of 7 samples can't be decoded, 1 are allowed; first unlabelled-"
    ) as caught:
        list(crops.batches(0, STEPS))
    assert all(where in str(caught.value) for where in broken)
    assert "\n" not in str(caught.value)


def test_a_set_of_broken_images_only_is_an_error_whatever_the_quota(packed: Path) -> None:
    for i in range(7):
        break_image(packed, i)
    with pytest.raises(DataError, match="7 samples in a row can't be decoded"):
        list(loader(packed, quota=BadQuota(count=100)).batches(0, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tar_truncated_during_the_run_is_one_line_and_no_bad_sample(packed: Path, workers: int) -> None:
    crops = loader(packed, workers)
    for shard in packed.glob("*.tar"):
        with shard.open("r+b") as file:
            file.truncate(100)
    with pytest.raises(
        DataError, match=r"^shard \S+\.tar is damaged: expected \d+ bytes, found 100 bytes"
    ) as caught:
        list(crops.batches(0, STEPS))
    assert "\n" not in str(caught.value)
    assert crops.bad == ()


def test_a_killed_worker_ends_the_batches_in_one_line(packed: Path) -> None:
    crops = loader(packed, workers=1)
    batches = crops.batches(0, 2000)
    next(batches)
    os.kill(child_processes()[-1], signal.SIGKILL)
    # torch's own error may come first: its signal handler raises it wherever the main process is.
    with pytest.raises(
        (DataError, RuntimeError), match=r"^(a data worker was|DataLoader worker .* is) killed"
    ) as caught:
        list(batches)
    assert "\n" not in str(caught.value).strip()


def child_processes() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_workers_leave_signals_to_the_main_process(packed: Path) -> None:
    batches = loader(packed, workers=2).batches(0, 30)
    next(batches)
    for pid in child_processes():
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert len(list(batches)) == 29


@pytest.mark.parametrize("ending", ["pass", "1 / 0"])
def test_a_program_that_ends_in_the_middle_of_the_batches_ends_at_once(packed: Path, ending: str) -> None:
    code = f"""
from essa_dist.data import CropConfig, CropLoader, DataConfig, open_packed
config = DataConfig(crops=CropConfig(global_size=16, local_size=8), workers=2)
crops = CropLoader(open_packed({str(packed)!r}), config, seed=0, global_batch=4, patch_size=4)
batches = crops.batches(0, 100)
next(batches)
{ending}
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False
    )
    assert time.monotonic() - start < 40


def test_workers_end_with_the_batches(packed: Path) -> None:
    before = set(child_processes())
    crops = loader(packed, workers=2)
    list(crops.batches(0, 2))
    unfinished = crops.batches(0, 50)
    next(unfinished)
    assert len(set(child_processes()) - before) == 2
    unfinished.close()
    assert set(child_processes()) <= before


def test_an_uneven_global_batch_is_refused(packed: Path) -> None:
    with pytest.raises(UsageError, match="global batch 4 can't be shared evenly by 3 ranks"):
        loader(packed, world_size=3)


@pytest.mark.parametrize(
    ("patch_size", "message"), [(5, "global_size 16 .* 5 .*use 15 or 20"), (16, "local_size 8 .*use 16")]
)
def test_crops_that_are_no_whole_number_of_patches_are_refused(
    packed: Path, patch_size: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        loader(packed, patch_size=patch_size)


def test_a_set_of_one_sample_is_refused(image_folder, tmp_path: Path) -> None:

    pack(
        PackConfig(
            src=str(image_folder({".": 1}, name="one")), out=str(tmp_path / "one_packed"), report=False
        )
    )
    with pytest.raises(UsageError, match="data set of 1 sample"):
        loader(tmp_path / "one_packed")


def test_automatic_workers_share_the_cores_of_the_machine_among_its_ranks(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert module.count_workers("auto") == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert module.count_workers("auto") == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert module.count_workers("auto") == 1
    assert module.count_workers(3) == 3


class Recording:
    """Storage that remembers what was asked of it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.calls: list[tuple[str, list[Range]]] = []
        self.uses: list[Uses] = []

    def read(self, ranges: Sequence[Range], uses: Uses | None = None) -> list[bytes]:
        self.calls.append(("read", list(ranges)))
        if uses is not None:  # none where a broken sample is replaced
            self.uses.append(uses)
        return self.storage.read(ranges)

    def ahead(self, ranges: Sequence[Range]) -> None:
        self.calls.append(("ahead", list(ranges)))


@pytest.mark.parametrize("decoder", ["torchvision", "dali"])
def test_a_batch_is_read_at_once_and_storage_is_told_of_the_next_two(packed: Path, decoder: str) -> None:
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    images = open_packed(str(packed))
    images.storage = recording = Recording(images.storage)
    config = DataConfig(crops=CROPS, workers=0, decoder=decoder)
    list(CropLoader(images, config, seed=1, global_batch=GLOBAL_BATCH, patch_size=4).batches(1, STEPS))
    needed = [
        [images._range(i) for i in SamplePlan(7, seed=1).indices(step, GLOBAL_BATCH)] for step in range(STEPS)
    ]
    assert [ranges for kind, ranges in recording.calls if kind == "read"] == needed[1:]
    assert [ranges for kind, ranges in recording.calls if kind == "ahead"] == [
        needed[2] + needed[3],
        needed[3] + needed[4],
        needed[4],
        [],
    ]
    plan = SamplePlan(7, seed=1)
    for step, uses in enumerate(recording.uses, start=1):
        assert uses.now == step * GLOBAL_BATCH
        for position, again in zip(plan.positions(step, GLOBAL_BATCH), uses.again, strict=True):
            assert again // 7 == position // 7 + 1  # alone on the machine: in the next epoch
            assert plan.at(range(again, again + 1)) == plan.at(range(position, position + 1))


def test_the_part_of_a_machine_is_that_of_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_slice(24, rank=1, world_size=4) == range(
        6, 12
    )  # not started by torchrun: one rank a machine
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert machine_slice(24, rank=3, world_size=4) == range(12, 24)


def test_what_is_announced_to_a_worker_is_what_that_worker_is_asked_for_next(packed: Path) -> None:
    crops = loader(packed, workers=2)
    crops._steps.range = range(6)
    requests = list(crops._steps)
    for request, later in zip(requests, requests[2:], strict=False):  # the same worker's next, of two
        assert list(request.ahead)[:GLOBAL_BATCH] == list(later.indices)


@pytest.mark.parametrize("window", [[3, 3], [400, -1000]])
def test_a_window_upside_down_is_refused(window: list[float]) -> None:
    with pytest.raises(ValidationError, match="the lower value comes first"):
        DataConfig(window=window)


def test_opening_looks_through_the_window(packed: Path) -> None:
    plain = DataConfig(train=str(packed)).open()
    bright = DataConfig(train=str(packed), window=(0, 128)).open()
    expected = (plain.decode(0).float() * 255 / 128).clamp(max=255).round()
    assert torch.equal(bright.decode(0).float(), expected)


class _Stuck(LocalShards):
    """The first batch comes, the next never."""

    def read(self, ranges: Sequence[Range], uses: Uses | None = None) -> list[bytes]:
        if getattr(self, "asked", False):
            time.sleep(300)
        self.asked = True
        return super().read(ranges, uses)


def test_workers_that_wait_for_storage_are_ended_within_seconds(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.3)
    images = open_packed(str(packed))
    images.storage = _Stuck(images.folder, images.manifest.shards)
    config = DataConfig(crops=CROPS, workers=3)
    made = CropLoader(images, config, seed=1, global_batch=4, patch_size=4).batches(0, 50)
    next(made)
    workers = set(child_processes())
    start = time.monotonic()
    made.close()
    assert time.monotonic() - start < 12  # torch alone waits 5 s for each
    assert workers
    assert not workers & set(child_processes())


@pytest.mark.parametrize("workers", [0, 1])
def test_why_a_sample_is_replaced_is_said_once_and_when_the_quota_ends_the_run(
    packed: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    broken = break_image(packed, 3)
    reason = "its bytes have changed since it was packed (checksum)"
    list(loader(packed, workers).batches(0, 2 * STEPS))
    assert [one.message for one in caplog.records if broken in one.message] == [
        f"can't decode {broken} ({reason}): the next sample takes its place"
    ]
    with pytest.raises(DataError, match=re.escape(f"{broken} ({reason})")):
        list(loader(packed, workers, quota=BadQuota(count=0, fraction=0)).batches(0, STEPS))
