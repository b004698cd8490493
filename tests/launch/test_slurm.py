"""launch/slurm.sbatch under an srun and a scontrol that keep Slurm's promises (tests/launch/slurm.py)."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from essa_dist.runfolder import committed_checkpoints
from tests.distributed.launching import REPOSITORY, Processes

SCRIPT = REPOSITORY / "launch" / "slurm.sbatch"
JOB = "4242"
# In place of Python: it tells Accelerate's environment, and as a rank it ends at once as $ENDS says of it.
STUB = """#!/usr/bin/env bash
case "$*" in
*accelerate*) echo "ACCELERATE_USE_X=true" ;;
*essa_dist*)
    echo "rank $RANK of $WORLD_SIZE, local $LOCAL_RANK of $LOCAL_WORLD_SIZE, at $MASTER_ADDR, X=$ACCELERATE_USE_X: $*" >>"$FAKE_SLURM/said"
    ends=($ENDS)
    [[ ${ends[RANK]} != killed ]] || kill -9 $$
    exit "${ends[RANK]}" ;;
esac
"""


class Slurm:
    """A job of two nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("srun", "scontrol"):
            fake = folder / "bin" / name
            fake.write_text(
                f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent}/slurm.py {name} "$@"\n'
            )
            fake.chmod(0o755)

    def start(self, *words: str, tasks: int = 2, restarts: int = 0, **env: str) -> Processes:
        slurm = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "FAKE_SLURM": str(self.folder),
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_NNODES": "2",
            "SLURM_NTASKS": str(tasks),
            "PYTHON": sys.executable,
        }
        if restarts:
            slurm["SLURM_RESTART_COUNT"] = str(restarts)
        return Processes([["bash", str(SCRIPT), *words]], env=slurm | env)

    def tasks(self) -> list[int]:
        return [int(pid) for pid in (self.folder / "tasks").read_text().split()]

    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    (tmp_path / "slurm").mkdir()
    return Slurm(tmp_path / "slurm")


def rows(run: Path) -> list[int]:
    file = run / "metrics.jsonl"
    return [json.loads(row)["step"] for row in file.read_text().splitlines()] if file.exists() else []


def wait_for_step(run: Path, step: int, job: Processes) -> None:
    deadline = time.monotonic() + 200
    while step not in rows(run):
        assert time.monotonic() < deadline, job.stderr(0)
        assert job.processes[0].poll() is None, job.stderr(0)
        time.sleep(0.02)


@pytest.mark.timeout(900)
def test_a_job_whose_time_is_up_is_queued_again_and_resumes(
    slurm: Slurm, recipe: Sequence[str], tmp_path: Path
) -> None:
    run, words = tmp_path / "run", ["fsdp2", *recipe, "duration=40", "checkpoint.every=40"]
    with slurm.start(*words) as job:
        wait_for_step(run, 2, job)
        for pid in slurm.tasks():  # as --signal=USR1 does: the processes, not the shell
            os.kill(pid, signal.SIGUSR1)
        (first,) = job.wait(250)
    assert first.exit_code == 75, first.stderr
    assert "fsdp2 on 2 x cpu" in first.stderr
    assert slurm.requeued() == [JOB]
    (saved,) = committed_checkpoints(run)
    stopped = int(saved.name.removeprefix("step_"))
    assert 2 <= stopped < 40
    with slurm.start(*words, restarts=1) as job:
        (second,) = job.wait(250)
    assert second.exit_code == 0, second.stderr
    assert f"resumed from {saved}" in second.stderr
    assert rows(run) == list(range(1, 41))
    assert slurm.requeued() == [JOB]  # not once more


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    return {"PYTHON": str(python)}


@pytest.mark.parametrize(
    ("ends", "code", "requeued"),
    [
        ("0 0 0 0", 0, False),
        ("75 75 75 75", 75, True),
        ("2 2 2 2", 2, False),
        ("1 1 1 1", 1, False),
        ("75 75 killed 75", 137, False),
    ],
)
def test_only_a_job_that_was_preempted_is_queued_again(
    slurm: Slurm, stub: dict[str, str], ends: str, code: int, requeued: bool
) -> None:
    with slurm.start("zero2", "config.yaml", tasks=4, ENDS=ends, **stub) as job:
        (ended,) = job.wait(60)
    assert ended.exit_code == code, ended.stderr
    assert slurm.requeued() == ([JOB] if requeued else [])


def test_a_job_that_never_gets_anywhere_is_not_queued_for_ever(slurm: Slurm, stub: dict[str, str]) -> None:
    with slurm.start("zero2", "config.yaml", restarts=100, ENDS="75 75", **stub) as job:
        (ended,) = job.wait(60)
    assert ended.exit_code == 75
    assert slurm.requeued() == []


def test_ranks_are_numbered_over_the_nodes_and_know_the_strategy_and_where_rank_0_is(
    slurm: Slurm, stub: dict[str, str]
) -> None:
    with slurm.start("zero2", "config.yaml", "out=a b", tasks=4, ENDS="0 0 0 0", **stub) as job:
        job.wait(60)
    said = sorted((slurm.folder / "said").read_text().splitlines())
    words = "at localhost, X=true: -m essa_dist adapt config.yaml out=a b resume=true"
    assert said == [f"rank {rank} of 4, local {rank % 2} of 2, {words}" for rank in range(4)]


def test_an_unknown_strategy_is_named_before_anything_is_started(slurm: Slurm, stub: dict[str, str]) -> None:
    with slurm.start("zero4", "config.yaml", **stub) as job:
        (ended,) = job.wait(60)
    assert ended.exit_code == 2
    assert "no file launch/zero4.yaml: name a strategy" in ended.stderr
    assert not (slurm.folder / "tasks").exists()


def test_sbatch_reads_the_options_before_the_first_command() -> None:
    head, _, body = SCRIPT.read_text().partition("\nset -euo pipefail\n")
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert "#SBATCH" not in body
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", head, re.MULTILINE))
    assert len(options) == head.count("\n#SBATCH")  # each parsed whole: no trailing words
    assert options["signal"] == "USR1@180"
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options.keys() >= {"requeue", "open-mode", "time", "nodes"}
    assert "gpus-per-task" not in options
