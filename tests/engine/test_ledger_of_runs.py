"""Kills and changes of the number of ranks in mid-epoch repeat no sample and skip none: the ledger of a real run says so."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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
    doomed = family(process.pid)  # not its process group: the launcher gives each rank one of its own
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    process.wait(DEADLINE_S)
    while any(alive(pid) for pid in doomed):
        assert time.monotonic() < end, "a process outlived kill -9"
        time.sleep(0.005)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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
    # The start that was killed before it saved made nothing that counts.
    assert [start.rpartition(" on ")[2] for start in found["starts"]] in (
        ["2 rank(s)", "4 rank(s)", "4 rank(s)", "1 rank(s)"],
        ["2 rank(s)", "4 rank(s)", "1 rank(s)"],
    )
    assert committed_checkpoints(run)[-1].name == "step_00000030"


@pytest.fixture
def bucket(packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The set on an S3 server of this machine."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "ESSA_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="cells")
    for file in Path(packed).iterdir():
        client.upload_file(str(file), "cells", f"set/{file.name}")
    yield "s3://cells/set"
    server.stop()


@pytest.mark.timeout(600)
def test_a_run_over_s3_killed_in_mid_epoch_goes_on_with_other_ranks_and_the_other_decoder(
    recipe: list[str], bucket: str, tmp_path: Path
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    longer = [*recipe, "ledger=true", "duration=60", "checkpoint.every=3", "resume=true", "data.workers=1"]
    run = tmp_path / "run"
    kill_after(run, 7, start(2, [*longer, f"data.train={bucket}"]))
    # From the local folder, then from the bucket again: it is the same set.
    kill_after(run, 11, start(1, [*longer, "data.decoder=dali"]))
    assert start(2, [*longer, f"data.train={bucket}", "data.decoder=dali"]).wait(DEADLINE_S) == 0
    found = check_ledger(LedgerConfig(run=str(run)))
    assert (found["steps"], found["samples"], found["epochs"]) == (60, 240, 12)
    assert (found["repeated"], found["skipped"], found["not_as_planned"]) == (0, 0, 0)
    assert len(found["starts"]) == 3
