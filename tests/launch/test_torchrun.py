"""launch/torchrun.sh starts dead ranks anew, and lets them save when it is told to stop."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from essa_dist.runfolder import committed_checkpoints
from tests.distributed.launching import REPOSITORY, Processes
from tests.distributed.launching import run as finish

SCRIPT = str(REPOSITORY / "launch" / "torchrun.sh")


def until(true: Callable[[], bool], job: Processes) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert time.monotonic() < deadline, job.stderr(0)
        assert job.processes[0].poll() is None, job.stderr(0)
        time.sleep(0.02)


def pid_of(rank: int, job: Processes) -> int:
    (pid,) = (p.pid for p in job.alive() if p.environ().get("RANK") == str(rank) and "adapt" in p.cmdline())
    return pid


@pytest.mark.timeout(600)
def test_a_killed_rank_is_started_anew_and_a_stopped_torchrun_leaves_a_checkpoint_and_nobody_behind(
    recipe: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["bash", SCRIPT, "ddp", *recipe, "duration=5000", "checkpoint.every=20"]
    with Processes([words], env={"GPUS": "2", "PYTHON": sys.executable}) as job:
        until(lambda: bool(committed_checkpoints(run)), job)
        os.kill(pid_of(1, job), signal.SIGKILL)
        until(lambda: "resumed from" in job.stderr(0), job)
        before = committed_checkpoints(run)[-1]
        until(lambda: committed_checkpoints(run)[-1] > before, job)
        job.send(signal.SIGUSR1)
        begin = time.monotonic()
        (ended,) = job.wait(60)
        assert time.monotonic() - begin < 30
        assert ended.exit_code not in (0, -signal.SIGUSR1), ended.stderr
        assert not [p for p in job.alive() if psutil.pid_exists(p.pid)]
    last = committed_checkpoints(run)[-1]
    assert f"stopped by SIGUSR1 after step {int(last.name.removeprefix('step_'))} of 5000" in ended.stderr


def test_an_unknown_strategy_is_named_before_anything_is_started() -> None:
    ended = finish(["bash", SCRIPT, "zero4", "config.yaml"], env={"PYTHON": sys.executable})
    assert ended.exit_code == 2
    assert "no file launch/zero4.yaml: name a strategy" in ended.stderr
