"""The sweep's own process is killed or asked to end, and a sweep over two nodes: each in processes of its own."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from essa_dist.tuning.record import read_trial
from tests.tuning.driving import WAIT_S, apart, kill_group, settings, until
from tests.tuning.stand_in import starts

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("ray")]
pytest.importorskip("ray")


def two_trials(folder: Path) -> dict[str, Any]:
    """One that ends at once, and one that waits at step 5 of 8."""
    space = {"data.train": {"choices": ["pace@0.02", "waits@5"]}}
    return settings(folder, space, search={"kind": "grid"}, cpus=2)


def half_done(told: dict[str, Any], process: "subprocess.Popen[str]") -> bool:
    """Whether the first trial is done, and the second waits."""
    assert process.poll() is None, process.communicate()[0]
    first, second = (Path(told["out"]) / "trials" / name for name in ("t0000", "t0001"))
    record = read_trial(first)
    saved = second / "run" / "checkpoints/step_00000004/COMMITTED"
    return record is not None and record.status == "done" and saved.exists()


def assert_goes_on(told: dict[str, Any]) -> None:
    """The finished trial isn't repeated, the other one goes on from its checkpoint."""
    first, second = (Path(told["out"]) / "trials" / name for name in ("t0000", "t0001"))
    until(lambda: not psutil.pid_exists(starts(second)[0]["pid"]))
    (second / "go").touch()
    process = apart(told, "resume=true")
    said, _ = process.communicate(timeout=2 * WAIT_S)
    assert process.returncode == 0, said
    assert len(starts(first)) == 1
    assert [start["step"] for start in starts(second)] == [0, 4]
    for folder in (first, second):
        record = read_trial(folder)
        assert record is not None
        assert (record.status, record.step) == ("done", 8)
        assert [look["step"] for look in record.curve] == [2, 4, 6, 8]


def test_a_sweep_that_was_killed_goes_on_without_repeating_what_was_finished(tmp_path: Path) -> None:
    told = two_trials(tmp_path)
    process = apart(told)
    try:
        until(lambda: half_done(told, process))
    finally:
        kill_group(process)
    assert_goes_on(told)


def test_a_sweep_that_is_asked_to_end_says_how_to_go_on(tmp_path: Path) -> None:
    told = two_trials(tmp_path)
    process = apart(told)
    try:
        until(lambda: half_done(told, process))
        begin = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 75, said
        assert "stopped with 1 of 2 trials ended; go on with resume=true" in said
        assert time.monotonic() - begin < 120
    finally:
        if process.poll() is None:
            kill_group(process)
    assert_goes_on(told)


def test_the_workers_of_a_trial_on_two_nodes_find_the_first_ones_address(tmp_path: Path) -> None:
    space = {"optim.lr": {"choices": [1e-3]}}
    told = settings(tmp_path, space, search={"kind": "grid"}, job={"workers": 2})
    process = apart(told, module="tests.tuning.two_nodes")
    try:
        said, _ = process.communicate(timeout=2 * WAIT_S)
    finally:
        if process.poll() is None:
            kill_group(process)
    assert process.returncode == 0, said
    assert json.loads(said.splitlines()[-1])["best"]
    first, second = sorted(starts(Path(told["out"]) / "trials" / "t0000"), key=lambda one: str(one["RANK"]))
    assert [one["RANK"] for one in (first, second)] == ["0", "1"]
    assert {one["WORLD_SIZE"] for one in (first, second)} == {"2"}
    assert (
        first["node"] != second["node"]
    )  # Ray Train counts nodes by address: these two are one machine to it
    assert first["MASTER_ADDR"] == second["MASTER_ADDR"] != ""
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
