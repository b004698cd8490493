"""Data workers heed nobody but their rank, and end with it, however it ends, without leaving anything."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from essa_dist.data import CropConfig, CropLoader, DataConfig, open_packed
from essa_dist.data.workers import LONGEST_TMPDIR
from essa_dist.errors import UsageError
from tests.distributed.launching import REPOSITORY, clean_environment

SCRIPT = """
import sys, time
from essa_dist.data import CropConfig, CropLoader, DataConfig, open_packed
config = DataConfig(crops=CropConfig(global_size=16, local_size=8), workers=2)
batches = CropLoader(open_packed(sys.argv[1]), config, seed=0, global_batch=4, patch_size=4).batches(0, 10**6)
next(batches)
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
for _ in range(20):
    next(batches)
print("read", flush=True)
batches.close()
"""


def start(packed: str, folder: Path, seconds: float) -> "subprocess.Popen[str]":
    env = clean_environment() | {
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / "inductor"),
    }
    command = [sys.executable, "-c", SCRIPT, packed, str(seconds)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=env, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not tmp_path: a socket's name has room for about 100 letters, which a test worker's may be too long for."""
    with tempfile.TemporaryDirectory(prefix="essa-") as short:
        (Path(short) / "temporary").mkdir()
        yield Path(short) / "temporary"


def test_workers_of_a_killed_process_end_at_once_and_clean_up(packed: str, folder: Path) -> None:
    with start(packed, folder, 300) as process:
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        assert list(folder.iterdir()) != []  # the sockets by which batches come
        process.kill()
        gone, alive = psutil.wait_procs(workers, timeout=3)  # torch's own look takes 5 s
        assert (len(gone), alive) == (2, [])
    deadline = time.monotonic() + 1
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(folder.iterdir()) == []


def test_signals_to_the_whole_group_leave_the_workers_at_work(packed: str, folder: Path) -> None:
    with start(packed, folder, 1) as process:
        for worker in psutil.Process(process.pid).children():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
                os.kill(worker.pid, number)
        assert process.communicate(timeout=60)[0] == "read\n"
        assert process.returncode == 0
    assert list(folder.iterdir()) == []


def test_a_killed_worker_leaves_nothing(packed: str, folder: Path) -> None:
    with start(packed, folder, 1) as process:
        psutil.Process(process.pid).children()[0].kill()
        process.communicate(timeout=60)
        assert process.returncode != 0
    assert list(folder.iterdir()) == []


def test_a_temporary_folder_that_is_too_long_for_sockets_is_refused(
    packed: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = CropLoader(
        open_packed(packed),
        DataConfig(crops=CropConfig(global_size=16, local_size=8), workers=1),
        seed=0,
        global_batch=4,
        patch_size=4,
    )
    monkeypatch.setattr("tempfile.tempdir", f"/tmp/{'x' * LONGEST_TMPDIR}")
    with pytest.raises(UsageError, match="is too long for the names of sockets"):
        next(crops.batches(0, 1))
