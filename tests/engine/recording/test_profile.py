"""A profile holds the steps that were asked for, and a run without one pays nothing."""

import gzip
import json
import logging
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from essa_dist import adapt
from essa_dist.engine.recording.profile import ProfileConfig, ProfileWindow

CPU = torch.device("cpu")


def loop(config: ProfileConfig, run: Path, *, steps: int, rank: int = 0) -> None:
    with ProfileWindow(config, run, rank=rank, device=CPU) as window:
        for step in range(1, steps + 1):
            window.before(step)
            torch.ones(step, 7) @ torch.ones(7, 3)
            window.after(step)


def shapes(trace: Path) -> list[int]:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return [e["args"]["Input Dims"][0][0] for e in events if e.get("name") == "aten::mm"]


def test_the_trace_of_each_rank_holds_its_steps_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="essa_dist"):
        loop(ProfileConfig(start=3, steps=2), tmp_path, steps=6, rank=5)
        assert not caplog.messages
        loop(ProfileConfig(start=3, steps=2), tmp_path, steps=6)
    assert "aten::mm" in caplog.messages[0]
    for rank in (0, 5):
        assert shapes(tmp_path / "profile" / f"rank_{rank}_steps_3-4.json.gz") == [3, 4]


def test_nothing_is_profiled_unless_asked_for(tmp_path: Path) -> None:
    loop(ProfileConfig(), tmp_path, steps=4)
    assert not (tmp_path / "profile").exists()


def test_a_run_that_ends_within_the_window_writes_the_steps_it_made(tmp_path: Path) -> None:
    loop(ProfileConfig(start=3, steps=9), tmp_path, steps=4)
    assert not torch._C._autograd._profiler_enabled()
    assert shapes(tmp_path / "profile" / "rank_0_steps_3-4.json.gz") == [3, 4]


def test_a_run_that_fails_within_the_window_leaves_no_profiler_on(tmp_path: Path) -> None:
    with (
        suppress(ZeroDivisionError),
        ProfileWindow(ProfileConfig(start=1), tmp_path, rank=0, device=CPU) as window,
    ):
        window.before(1)
        raise ZeroDivisionError
    assert not torch._C._autograd._profiler_enabled()
    assert not (tmp_path / "profile").exists()


def test_a_run_writes_its_profile_and_computes_the_same(recipe: list[str], tmp_path: Path) -> None:
    plain = adapt(None, *recipe, "duration=3")
    run = tmp_path / "profiled"
    profiled = adapt(None, *recipe, "duration=3", "profile.start=2", "profile.steps=1", f"out={run}")
    assert profiled["loss"] == plain["loss"]
    assert [path.name for path in (run / "profile").iterdir()] == ["rank_0_steps_2-2.json.gz"]


def test_a_window_behind_the_last_step_is_told(recipe: list[str], caplog: pytest.LogCaptureFixture) -> None:
    adapt(None, *recipe, "duration=1", "profile.start=2")
    assert "profile.start=2 comes after the last step, 1" in caplog.messages
