"""Kills and changes of the number of ranks in mid-epoch repeat no sample and skip none: the ledger of a real run says so."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from essa_dist.report.ledger import LedgerConfig, check_ledger
from essa_dist.runfolder import committed_checkpoints

DEADLINE_S = 150


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(ranks: int, recipe: list[str]) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]
    return subprocess.Popen(
        [sys.executable, *(launcher if ranks > 1 else []), "-m", "essa_dist", "adapt", *recipe],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,  # the launcher and its ranks are killed together
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def kill_after(run: Path, updates: int, process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` of the launcher and all its ranks once so many updates of the run are recorded."""
    end = time.monotonic() + DEADLINE_S
    while not any(f'"step": {updates},' in file.read_text() for file in (run / "ledger").glob("*.jsonl")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"update {updates} was not reached"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)


@pytest.mark.timeout(600)
def test_kills_and_other_numbers_of_ranks_in_mid_epoch_repeat_and_skip_nothing(
    recipe: list[str], tmp_path: Path
) -> None:
    # 20 images, batches of 4: an epoch is 5 updates, and a checkpoint every 3 is mostly in the middle of one.
    longer = [*recipe, "ledger=true", "duration=30", "checkpoint.every=3", "resume=true", "data.workers=1"]
    run = tmp_path / "run"
    kill_after(run, 7, start(2, longer))
    kill_after(run, 11, start(4, longer))
    kill_after(run, 13, start(4, longer))  # twice in one epoch
    last = start(1, longer)
    assert last.wait(DEADLINE_S) == 0
    found = check_ledger(LedgerConfig(run=str(run)))
    assert (found["steps"], found["samples"], found["epochs"]) == (30, 120, 6)
    assert (found["repeated"], found["skipped"], found["not_as_planned"]) == (0, 0, 0)
    assert {start.rpartition(" on ")[2] for start in found["starts"]} >= {"2 rank(s)", "1 rank(s)"}
    assert committed_checkpoints(run)[-1].name == "step_00000030"
