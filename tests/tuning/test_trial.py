"""What a trial tells Ray, and how it takes itself up where it was."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from essa_dist import runfolder
from essa_dist.settings import load
from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.generation import pin
from essa_dist.tuning.looks import looks_of, progress
from essa_dist.tuning.record import Trial, read_trial, write_trial
from essa_dist.tuning.schedule import PROGRESS
from essa_dist.tuning.search import NUMBER
from essa_dist.tuning.trial import Shared, TrialJob
from tests.tuning.driving import settings

pytest.importorskip("ray")
LR = {"low": 1e-4, "high": 1e-2, "log": True}


def made(folder: Path, lr: float, name: str = "t0000", **more: Any) -> TrialJob:
    """A trial as Ray makes it, in this process."""
    config = load(TuneConfig, settings(folder, {"optim.lr": LR}, **more))
    job = TrialJob.__new__(TrialJob)
    job._trial_info = SimpleNamespace(trial_name=name)
    shared = Shared(config, {}, "token", str(folder), "", base=config.base, duration=8)
    job.setup({NUMBER: int(name[1:]), "optim.lr": lr}, shared)
    return job


def looks(job: TrialJob, rows: list[dict[str, Any]]) -> None:
    """Write ``rows`` as its run does."""
    job._run().mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"epoch": 1} | row) + "\n" for row in rows)
    (job._run() / runfolder.METRICS).write_text(text + '{"step": 9, "cana')


def test_each_look_is_told_as_it_was_also_once_more_after_a_process_was_lost(tmp_path: Path) -> None:
    rows = [{"step": step, "canary_knn": step / 10} for step in (2, 4, 6)]
    first = made(tmp_path, 1e-3)
    looks(first, rows)
    told = [first._heard(row) for row in looks_of(first._metrics(), first.goals)]
    assert [(one["step"], one["canary_knn"], one[PROGRESS]) for one in told] == [
        (2, 0.2, 25),
        (4, 0.4, 50),
        (6, 0.6, 75),
    ]
    curve = first.trial.curve
    again = made(tmp_path, 1e-3)
    again.before_s += 1000
    assert [again._heard(row)["canary_knn"] for row in looks_of(again._metrics(), again.goals)] == [
        0.2,
        0.4,
        0.6,
    ]
    assert again.trial.curve == curve


def test_a_number_that_is_not_finite_is_told_as_one_and_is_never_the_best(tmp_path: Path) -> None:
    job = made(tmp_path, 1e-3)
    looks(job, [{"step": 2, "canary_knn": 0.5}, {"step": 3, "loss": 1.0}, {"step": 4, "canary_knn": None}])
    told = [job._heard(row) for row in looks_of(job._metrics(), job.goals)]
    assert [one["step"] for one in told] == [2, 4]
    assert math.isnan(told[1]["canary_knn"])
    known = read_trial(job.folder)
    assert known is not None
    assert known.best == {"step": 2, "canary_knn": 0.5}


def test_a_number_of_a_trial_that_was_forgotten_and_drawn_anew_is_another_trial(tmp_path: Path) -> None:
    folder = tmp_path / "sweep/trials/t0000"
    write_trial(folder, Trial("t0000", {"optim.lr": 2e-3}, str(folder), "done", step=8))
    assert made(tmp_path, 2e-3).trial.status == "done"
    other = made(tmp_path, 3e-3)
    assert (other.trial.status, other.trial.step) == ("waiting", 0)
    assert not folder.exists()


def pointer_of(folder: Path, donor: str, step: int) -> Path:
    """The checkpoint that Ray hands on when ``donor`` is copied."""
    trial = folder / "sweep/trials" / donor
    saved = runfolder.checkpoint_folder(trial / "run", step)
    saved.mkdir(parents=True, exist_ok=True)
    (saved / runfolder.MARKER).touch()
    given = folder / f"given_{donor}_{step}"
    given.mkdir(exist_ok=True)
    (given / "pointer.json").write_text(json.dumps(pin(donor, trial, trial / "run")))
    return given


def test_an_exploit_that_was_interrupted_goes_on_and_one_with_new_settings_begins_anew(
    tmp_path: Path,
) -> None:
    pbt: dict[str, Any] = {"scheduler": {"kind": "pbt"}}
    given = pointer_of(tmp_path, "t0001", 4)
    job = made(tmp_path, 1e-3, **pbt)
    job._write("running")
    job = made(tmp_path, 2e-3, **pbt)
    job.trial.curve = [{"step": 4.0, "canary_knn": 0.1}, {"step": 6.0, "canary_knn": 0.2}]
    job.load_checkpoint(given)
    assert job.trial.parents == ["t0001@4"]
    assert [look["step"] for look in job.trial.curve] == [4]
    assert job._run().name == "run1"
    again = made(tmp_path, 2e-3, **pbt)  # its driver was killed
    again.load_checkpoint(given)
    assert again.trial.parents == ["t0001@4"]
    anew = made(tmp_path, 4e-3, **pbt)  # exploits the same checkpoint once more
    anew.load_checkpoint(given)
    assert anew.trial.parents == ["t0001@4", "t0001@4"]
    settled = runfolder.committed_checkpoints(anew._run())
    assert (anew._run().name, [one.name for one in settled]) == ("run2", ["step_00000004"])
    assert "lr: 0.004" in (anew._run() / runfolder.CONFIG).read_text()


def test_a_trial_never_begins_from_itself(tmp_path: Path) -> None:
    job = made(tmp_path, 1e-3, scheduler={"kind": "pbt"})
    job.load_checkpoint(pointer_of(tmp_path, "t0000", 4))
    assert job.trial.parents == []
    assert job._run().name == "run"


def test_progress_is_counted_in_steps_or_epochs_as_the_run_is() -> None:
    row = {"step": 30, "epoch": 1.5}
    assert progress(row, 120) == 25
    assert progress(row, "6ep") == 25


def test_a_trials_driver_is_there_without_waiting_for_torch() -> None:
    code = "import sys, essa_dist.tuning.trial; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
