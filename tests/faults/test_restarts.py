"""One command starts a run and goes on with it: by torchrun's restarts, by a requeued job, by hand."""

import logging
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from essa_dist import adapt
from essa_dist.engine.config import RunConfig
from essa_dist.engine.recording import record
from essa_dist.errors import UsageError
from essa_dist.runfolder import CHECKPOINTS, LOCK
from tests.distributed.launching import torchrun
from tests.faults.drilling import Drill, restarted


def test_a_killed_rank_is_restarted_by_torchrun_and_the_run_goes_on_by_itself(
    pair: Drill,
) -> None:
    run = pair.new_run()
    restarted(replace(pair, launcher=lambda: torchrun(2, "--max-restarts=2")), run, random.Random(4))
    pair.compare(run)


def test_resume_is_also_a_start_where_a_start_was_killed_at_once(recipe: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / CHECKPOINTS).mkdir(parents=True)
    (run / LOCK).write_text("")
    (run / ".config.yaml.writing").write_text("out: [")
    assert adapt(None, *recipe, "resume=true", "duration=1")["step"] == 1


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restart_deletes_nothing(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    adapt(None, *recipe, "overwrite=true", "duration=2")
    monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=r"overwrite=true in a job that was restarted .*say resume=true"):
        adapt(None, *recipe, "overwrite=true", "duration=2")
    assert list((tmp_path / "run" / CHECKPOINTS).iterdir())


def test_who_asks_torchrun_for_restarts_is_told_what_they_need(
    recipe: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with caplog.at_level(logging.WARNING, logger="essa_dist"):
        adapt(None, *recipe, "duration=1", "resume=true")
        assert "resume=true" not in caplog.text
        adapt(None, *recipe, "duration=1", "overwrite=true")
        assert "with --max-restarts say resume=true" in caplog.text


HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "a") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_run_that_goes_on_waits_for_the_process_before_it_to_let_go(
    packed: str, recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    config = RunConfig(out=str(tmp_path / "run"), resume=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run" / LOCK), "1.5"], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        monkeypatch.setattr(record, "RESUME_S", 0.2)
        with pytest.raises(UsageError, match="another process trains"), record.run_folder(config):
            pass
        monkeypatch.setattr(record, "RESUME_S", 20.0)
        begin = time.monotonic()
        with record.run_folder(config):
            assert 0.3 < time.monotonic() - begin < 10
