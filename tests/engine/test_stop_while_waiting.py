"""A signal ends a run within seconds even when its next batch doesn't come, with all updates saved and nobody left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from essa_dist import adapt
from essa_dist.runfolder import committed_checkpoints

STUCK = """
import sys, time
from essa_dist.cli.command import main
from essa_dist.data.storage import LocalShards
from essa_dist.engine.watching import signals

signals.PATIENCE_S = 0.5
read, reads = LocalShards.read, []

def stuck(self, ranges, uses=None):  # as a server that is down
    reads.append(1)
    if len(reads) > 4:
        time.sleep(300)
    return read(self, ranges, uses)

LocalShards.read = stuck
sys.exit(main())
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_whose_batch_does_not_come_is_stopped_with_a_checkpoint_of_its_last_update(
    recipe: list[str], tmp_path: Path, workers: int
) -> None:
    words = [*recipe, "duration=20", "checkpoint.every=3", f"data.workers={workers}"]
    run = subprocess.Popen(
        [sys.executable, "-c", STUCK, "adapt", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") == 4):
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    start = time.monotonic()
    run.send_signal(signal.SIGTERM)
    told = run.communicate(timeout=60)[1]
    assert time.monotonic() - start < 20
    assert run.returncode == 75, told
    assert "stopped by SIGTERM after step 4 of 20; go on with resume=true" in told
    assert "Traceback" not in told
    assert committed_checkpoints(tmp_path / "run")[-1].name == "step_00000004"
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        os.killpg(run.pid, 0)
    assert adapt(None, *words, "resume=true")["step"] == 20
