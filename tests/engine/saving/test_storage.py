"""A run that could not save is told so before its first step, with the numbers."""

import errno
import logging
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from essa_dist import adapt, disk
from essa_dist.engine.saving import storage
from essa_dist.engine.saving.storage import checkpoint_bytes, preflight, warn_if_slow
from essa_dist.errors import UsageError
from essa_dist.export.saved import FILES
from essa_dist.runfolder import MARKER, checkpoint_folder, mark_best

SHAPES = {"student/a": (500, 1000), "teacher/a": (500, 1000), "buffers/center": (7, 1000)}
SIZE = 4 * (4 * 500_000 + 7_000)  # student, teacher and two moments; fp32


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


def free(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=n_bytes))


def test_a_good_disk_is_measured_quickly_and_left_as_it_was(run: Path) -> None:
    begin = time.perf_counter()
    seconds = preflight(run, SHAPES, keep=2)
    assert time.perf_counter() - begin < 2
    assert 0 < seconds < 10
    assert list((run / "checkpoints").iterdir()) == []


def test_there_must_be_room_for_those_that_are_kept_and_the_one_that_is_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 3 * SIZE)
    preflight(run, SHAPES, keep=2)
    free(monkeypatch, 3 * SIZE - 1)
    with pytest.raises(
        UsageError, match=r"of 8\.0 MB need 24\.1 MB .*keep=2.*, 24\.1 MB are free.*lower checkpoint.keep"
    ):
        preflight(run, SHAPES, keep=2)


def write_checkpoints(run: Path, *steps: int) -> None:
    for step in steps:
        folder = checkpoint_folder(run, step)
        folder.mkdir()
        (folder / MARKER).touch()
        with (folder / "student.safetensors").open("wb") as file:
            file.truncate(SIZE)


def test_the_best_checkpoint_of_a_canary_needs_room_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 4 * SIZE)
    preflight(run, SHAPES, keep=2, best=True)
    free(monkeypatch, 4 * SIZE - 1)
    with pytest.raises(
        UsageError, match=r"32\.1 MB .*keep=2, the canary's best and one that is being written"
    ):
        preflight(run, SHAPES, keep=2, best=True)
    (run / "checkpoints").mkdir()
    write_checkpoints(run, 1, 4, 5)
    mark_best(run, 1)
    free(monkeypatch, SIZE)
    preflight(run, SHAPES, keep=2, best=True)


def test_checkpoints_that_are_there_already_need_no_room_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoints(run, 1, 2)
    free(monkeypatch, SIZE)
    preflight(run, SHAPES, keep=2)
    free(monkeypatch, SIZE - 1)
    with pytest.raises(UsageError, match=r"need 8\.0 MB"):
        preflight(run, SHAPES, keep=2)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_folder_that_takes_no_files_is_refused_and_nothing_stays_in_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os if call == "fsync" else Path, call, refuse)
    with pytest.raises(
        UsageError, match=r"takes no checkpoints \(.*checkpoints: Read-only file system\).*out=DIR"
    ):
        preflight(run, SHAPES, keep=2)
    assert list(run.iterdir()) == []


def test_a_vanished_folder_is_refused(run: Path) -> None:
    (run / "checkpoints").rmdir()
    with pytest.raises(UsageError, match="No such file or directory"):
        preflight(run, SHAPES, keep=2)


def test_the_speed_is_that_of_the_disk(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (time.sleep(0.1), real(fd))[1])
    # 1 MiB takes 0.2 s with the flush of the folder, so the second file is as small as the first.
    assert 1e6 < disk.write_speed(run) < 5.3e6


def test_a_disk_too_slow_for_the_interval_is_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_if_slow(2.0, 2.5)
        assert caplog.text == ""
        warn_if_slow(3.0, 2.5)
    assert "takes about 3.0 s to be written here, and the next one is due in about 2.5 s" in caplog.text


def test_the_size_is_foreseen(recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreseen: list[int] = []
    real = storage.checkpoint_bytes
    monkeypatch.setattr(
        storage, "checkpoint_bytes", lambda shapes: (foreseen.append(real(shapes)), real(shapes))[1]
    )
    adapt(None, *recipe)
    folder = tmp_path / "run" / "checkpoints" / "step_00000006"
    # Less headers: there are many small tensors in so small a model.
    held = sum((folder / f"{file}.safetensors").stat().st_size for file in FILES)
    headers = sum(
        8 + int.from_bytes((folder / f"{file}.safetensors").read_bytes()[:8], "little") for file in FILES
    )
    assert foreseen[0] == pytest.approx(held - headers, rel=0.01)


def test_a_run_with_no_room_ends_before_its_first_step_and_leaves_its_place_free(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1000)
    with pytest.raises(UsageError, match="are free: free some space"):
        adapt(None, *recipe)
    monkeypatch.undo()
    assert adapt(None, *recipe)["step"] == 6  # the same command, once there is room


def test_bytes_count_the_moments_of_students_alone() -> None:
    assert checkpoint_bytes({name: torch.Size(shape) for name, shape in SHAPES.items()}) == SIZE
