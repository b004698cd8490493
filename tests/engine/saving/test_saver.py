"""What ranks save apart is one checkpoint of whole tensors, what is loaded is what was saved, and errors reach all ranks."""

import errno
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from essa_dist.engine.saving import checkpoint, restore, saver, staging
from essa_dist.engine.saving.saver import Saver
from essa_dist.export.saved import FILES
from essa_dist.runfolder import committed_checkpoints
from tests.engine.fakes import LAYOUTS, FakeStrategy, ThreadChannel, on_ranks, tensors

STATE = {"step": 4, "trunk_sha256": "abc", "weights_source": "random"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


def make(
    run: Path, channel: ThreadChannel, wholes: dict[str, torch.Tensor], layout: str = "numbers"
) -> Saver:
    strategy: Any = FakeStrategy(wholes, layout, channel.rank, channel.world)
    return Saver(run, strategy, channel, keep=2)


def save(run: Path, world: int, layout: str, wholes: dict[str, torch.Tensor], *steps: int) -> list[Any]:
    def work(channel: ThreadChannel) -> None:
        with make(run, channel, wholes, layout) as saves:
            for step in steps or (4,):
                saves.save(step, STATE | {"step": step})

    return on_ranks(world, work)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """By the safetensors library, which knows nothing of pieces."""
    return {
        f"{file}/{name}": t for file in FILES for name, t in load_file(folder / f"{file}.safetensors").items()
    }


def assert_same(found: dict[str, torch.Tensor], wholes: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wholes.keys()
    for name, whole in wholes.items():
        assert found[name].dtype == whole.dtype, name
        assert torch.equal(found[name], whole), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_any_layout_on_any_number_of_ranks_makes_the_same_files(
    run: Path, monkeypatch: pytest.MonkeyPatch, world: int, layout: str
) -> None:
    monkeypatch.setattr(staging, "BLOCK", 48)  # so that tensors fall into pieces on one rank, too
    assert save(run, world, layout, tensors()) == [None] * world
    (folder,) = committed_checkpoints(run)
    assert_same(saved(folder), tensors())
    state = json.loads((folder / "state.json").read_text())
    assert {key: state[key] for key in STATE} == STATE
    twin = run.with_name("twin")
    (twin / "checkpoints").mkdir(parents=True)
    save(twin, 1, "first", tensors())
    for file in FILES:
        name = f"{file}.safetensors"
        assert (folder / name).read_bytes() == (twin / "checkpoints" / folder.name / name).read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_checkpoint_loads_into_any_layout_on_any_number_of_ranks(
    run: Path, world: int, layout: str
) -> None:
    save(run, 3, "numbers", tensors(seed=1))

    def work(channel: ThreadChannel) -> tuple[FakeStrategy, Any]:
        strategy: Any = FakeStrategy(tensors(seed=2), layout, channel.rank, channel.world)
        return strategy, restore.resume(run, strategy, channel, trunk_sha256="abc")

    ends = on_ranks(world, work)
    assert all(strategy.complete and state["step"] == 4 for strategy, state in ends)
    held = {key: part for strategy, _ in ends for key, part in strategy.filled_in.items() if len(part)}
    for name, whole in tensors(seed=1).items():
        parts = [part for (of, _), part in sorted(held.items(), key=lambda item: item[0]) if of == name]
        assert torch.equal(torch.cat(parts), whole.flatten()), name


def test_a_folder_without_a_checkpoint_is_a_new_run(run: Path) -> None:
    (run / "checkpoints" / "step_00000004").mkdir()

    def work(channel: ThreadChannel) -> Any:
        strategy: Any = FakeStrategy(tensors(), "rows", channel.rank, channel.world)
        return restore.resume(run, strategy, channel, trunk_sha256="abc"), strategy.filled_in

    assert on_ranks(2, work) == [(None, {})] * 2


def test_training_may_go_on_changing_its_tensors_while_they_are_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, real, copy = threading.Event(), checkpoint.write, saver.Copying.run
    monkeypatch.setattr(checkpoint, "write", lambda *a: go.wait(20) and real(*a))

    def slowly(self: Any, reserved: Any) -> None:
        time.sleep(0.3 if threading.current_thread().name == "save" else 0)
        copy(self, reserved)

    monkeypatch.setattr(saver.Copying, "run", slowly)
    wholes, before = tensors(), tensors()

    def work(channel: ThreadChannel) -> None:
        with make(run, channel, wholes) as saves:
            saves.save(4, STATE)
            wholes["buffers/center"].zero_()  # as the forward pass does
            saves.copied()
            for whole in wholes.values():
                whole.zero_()
            go.set()
        assert saves.done[0].pause_s > 0.2  # a wait for the copy counts

    assert on_ranks(1, work) == [None]
    assert_same(saved(committed_checkpoints(run)[0]), before)


def test_every_tensor_on_its_way_to_the_disk_is_told_of_on_rank_0(run: Path) -> None:
    told: list[int] = []

    def work(channel: ThreadChannel) -> None:
        strategy: Any = FakeStrategy(tensors(), "rows", channel.rank, channel.world)
        moved = lambda: told.append(channel.rank)  # noqa: E731
        with Saver(run, strategy, channel, keep=2, moved=moved) as saves:
            saves.save(4, STATE | {"step": 4})

    assert on_ranks(2, work) == [None, None]
    assert len(told) >= len(tensors())
    assert set(told) == {0}


def test_one_save_at_a_time_and_only_the_newest_are_kept(run: Path) -> None:
    leftover = run / "checkpoints" / ".step_00000001.new.writing"
    leftover.mkdir()
    (leftover / "student.safetensors").write_bytes(b"half")
    (run / "checkpoints" / "step_00000002").mkdir()  # its marker was removed, then the process was killed
    assert save(run, 2, "rows", tensors(), 3, 4, 5, 6) == [None, None]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_00000005", "step_00000006"]


def test_memory_is_allocated_before_the_first_save_and_used_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "BLOCK", 1 << 10)
    grown: list[int] = []
    real = staging.Staging._grow
    monkeypatch.setattr(staging.Staging, "_grow", lambda self: (grown.append(1), real(self))[1])
    unstepped = {k: t for k, t in tensors().items() if not k.startswith("optimizer")}

    def work(channel: ThreadChannel) -> tuple[int, int]:
        saves = make(run, channel, unstepped)
        saves.wait()
        at_start = len(grown)
        saves.strategy.wholes |= tensors()  # type: ignore[attr-defined]
        for step in (1, 2, 3):
            saves.save(step, STATE)
        saves.wait()
        return at_start, len(grown)

    ((before, after),) = on_ranks(1, work)
    assert before == after > 0


def fail(error: Exception, at: int = 3) -> Any:
    """``TensorFile.finish`` that raises when it is called for the ``at``-th time."""
    calls: list[object] = []
    real = checkpoint.TensorFile.finish

    def finish(self: Any) -> Any:
        calls.append(self)
        if len(calls) == at:
            raise error
        return real(self)

    return finish


@pytest.mark.parametrize("world", [1, 3])
def test_an_error_of_writing_reaches_every_rank_leaves_the_checkpoint_before_and_nothing_behind(
    run: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    save(run, 1, "first", tensors(seed=1))
    monkeypatch.setattr(
        checkpoint.TensorFile, "finish", fail(OSError(errno.ENOSPC, "No space left on device"))
    )

    def work(channel: ThreadChannel) -> OSError:
        saves = make(run, channel, tensors())
        saves.save(8, STATE)
        while not saves.failed:
            time.sleep(0.001)
        with pytest.raises(OSError, match="No space left on device") as raised:
            saves.save(9, STATE)
        saves.wait()  # it is said once
        if channel.rank == 0:
            assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000004"]
        saves.save(10, STATE | {"step": 10})  # what the ranks had sent is not in the way of the next one
        saves.wait()
        return raised.value

    ends = on_ranks(world, work)
    assert [(e.errno, e.filename) for e in ends] == [
        (errno.ENOSPC, str(run / "checkpoints" / "step_00000008"))
    ] * world
    before, after = committed_checkpoints(run)
    assert_same(saved(before), tensors(seed=1))
    assert_same(saved(after), tensors())


def test_a_vanished_folder_is_an_error_and_is_not_made_again(run: Path) -> None:
    (run / "checkpoints").rmdir()
    ends = save(run, 2, "rows", tensors())
    assert all(isinstance(e, FileNotFoundError) and "checkpoints" in e.filename for e in ends)
    assert list(run.iterdir()) == []


def test_an_error_of_the_run_itself_is_not_hidden_by_one_of_saving(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint.TensorFile, "finish", fail(OSError(errno.EIO, "Input/output error"), at=1))

    def work(channel: ThreadChannel) -> None:
        with make(run, channel, tensors()) as saves:
            saves.save(1, STATE)
            raise ArithmeticError("diverged")

    (end,) = on_ranks(1, work)
    assert isinstance(end, ArithmeticError)
    assert "Input/output error" in caplog.text


def lacking(wholes: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: whole for key, whole in wholes.items() if key != name}


@pytest.mark.parametrize(
    ("wholes", "message"),
    [
        (tensors() | {"student/frozen": torch.ones(2)}, "frozen is not trained"),
        (tensors() | {"teacher/backbone.vit.norm.bias": torch.ones(2)}, "norm.bias is not trained"),
        (tensors() | {"optimizer/frozen/exp_avg": torch.ones(2)}, "frozen is not trained"),
        (lacking(tensors(), "teacher/late"), "no rank has teacher/late"),
        (tensors() | {"buffers/center": torch.ones(0)}, "no rank has buffers/center"),
    ],
)
def test_frozen_weights_and_missing_or_empty_tensors_are_never_saved(
    run: Path, wholes: dict[str, torch.Tensor], message: str
) -> None:
    def work(channel: ThreadChannel) -> None:
        saves = make(run, channel, wholes)
        whole, shapes = tensors(), saves.strategy.shapes()
        saves.strategy.objective.branches.students.pop("frozen", None)
        saves.strategy.shapes = lambda: (
            shapes | {k: t.shape for k, t in whole.items() if k[:9] != "optimizer"}
        )  # type: ignore[method-assign]
        saves.save(1, STATE)
        saves.wait()

    for end in on_ranks(2, work):
        assert isinstance(end, RuntimeError)
        with pytest.raises(RuntimeError, match=message):
            raise end
    assert committed_checkpoints(run) == []


def test_ranks_that_hold_a_number_twice_or_not_at_all_are_caught(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layout, message in (
        (lambda whole, rank, world: (0, whole.numel()), "rank 1 has it from 0 on"),
        (lambda whole, rank, world: (rank, rank + 1), "all ranks together have 2 numbers of it"),
    ):
        monkeypatch.setitem(LAYOUTS, "wrong", layout)
        for end in save(run, 2, "wrong", tensors()):
            with pytest.raises(RuntimeError, match=message):
                raise end
    assert committed_checkpoints(run) == []


def test_a_pause_is_the_copy_and_not_the_writing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a: time.sleep(0.3) or real(*a))

    def work(channel: ThreadChannel) -> Any:
        saves = make(run, channel, tensors())
        saves.save(4, STATE)
        saves.wait()
        return saves.done[-1]

    for last in on_ranks(2, work):
        assert 0 < last.pause_s < last.seconds - 0.3
        assert last.bytes == sum(f.stat().st_size for f in last.folder.iterdir())


def test_saves_that_come_faster_than_they_are_written_are_spoken_of(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saver, "LONG_S", 0.05)
    real = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a: time.sleep(0.2) or real(*a))

    def work(channel: ThreadChannel) -> None:
        with make(run, channel, tensors()) as saves:
            for step in (1, 2, 3):
                saves.save(step, STATE)

    on_ranks(1, work)
    assert "raise checkpoint.every" in caplog.text
