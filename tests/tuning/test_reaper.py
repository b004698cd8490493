"""Trials that have ended give back their memory, if need be by force."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from essa_dist.tuning import reaper as module
from essa_dist.tuning.reaper import Reaper, processes_of, write_freed
from essa_dist.tuning.worker import TOKEN
from tests.tuning.driving import until

pytestmark = pytest.mark.timeout(120)
MIB = 2**20


@contextmanager
def process(sweep: str, trial: str, mib: int = 1) -> Iterator["subprocess.Popen[str]"]:
    code = f"held = b'x' * ({mib} * {MIB}); print('ready', flush=True); import time; time.sleep(600)"
    env = os.environ | {TOKEN: f"{sweep}/{trial}"}
    started = subprocess.Popen([sys.executable, "-S", "-c", code], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of this machine."""
    monkeypatch.setattr(module, "everywhere", processes_of)


def freed(reaper: Reaper) -> dict[str, dict[str, float]]:
    """What is free after one more look."""
    reaper.look()
    return reaper.freed


def test_processes_are_counted_by_their_sweep_and_trial() -> None:
    with process("one", "t0000", 40) as a, process("one", "t0001") as b, process("two", "t0000"):
        found = processes_of("one")
        assert {(one.trial, one.pid) for one in found} == {("t0000", a.pid), ("t0001", b.pid)}
        big = next(one for one in found if one.trial == "t0000")
        assert big.rss > 40 * MIB
        assert processes_of("three") == []
        processes_of("one", kill=("t0001",))
        assert b.wait(20) == -9
        assert a.poll() is None


@pytest.mark.usefixtures("alone")
def test_what_a_trial_had_held_is_told_when_its_processes_are_gone() -> None:
    reaper = Reaper("sweep")
    with process("sweep", "t0000", 64):
        reaper.look()
        reaper.end("t0000")
        reaper.look()
        assert reaper.freed == {}
    until(lambda: freed(reaper), 20)
    told = reaper.freed["t0000"]
    assert 64 / 1024 < told["gib"] < 0.2
    assert told["killed"] == 0


@pytest.mark.usefixtures("alone")
def test_what_has_ended_and_still_is_there_after_a_while_is_killed_and_nothing_else() -> None:
    reaper = Reaper("sweep", patience_s=0.5)
    with process("sweep", "t0000") as late, process("sweep", "t0001") as runs:
        reaper.look()
        reaper.end("t0000")
        reaper.look()
        assert late.poll() is None
        until(lambda: freed(reaper), 20)
        assert late.wait(20) == -9
        assert runs.poll() is None
        assert reaper.freed["t0000"]["killed"] >= 1


@pytest.mark.usefixtures("alone")
def test_a_trial_that_starts_once_more_is_left_alone() -> None:
    reaper = Reaper("sweep", patience_s=0)
    with process("sweep", "t0000") as runs:
        reaper.end("t0000")
        reaper.start("t0000")
        reaper.look()
        assert runs.poll() is None
        assert reaper.freed == {}


@pytest.mark.usefixtures("alone")
def test_the_watch_goes_on_past_an_error_and_ends_with_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def look(token: str, kill: tuple[str, ...]) -> list[object]:
        calls.append(token)
        raise ConnectionError("a machine went away")

    monkeypatch.setattr(module, "everywhere", look)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    with Reaper("sweep") as reaper:
        until(lambda: len(calls) > 3, 20)
    assert not reaper._thread.is_alive()


def test_what_was_freed_is_written_where_there_is_something(tmp_path: Path) -> None:
    write_freed(tmp_path, {})
    assert not (tmp_path / "freed.json").exists()
    write_freed(tmp_path, {"t0000": {"gib": 1.5, "seconds": 2.0, "killed": 0}})
    assert json.loads((tmp_path / "freed.json").read_text())["t0000"]["gib"] == 1.5
