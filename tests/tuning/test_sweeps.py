"""Sweeps by real Ray, whose ranks are stand-ins for runs: what ends well, what ends badly, and what is killed."""

import json
import math
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from essa_dist.errors import UsageError
from essa_dist.tuning.record import Trial, read_trials
from tests.tuning.driving import settings, sweep, until
from tests.tuning.stand_in import starts

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("ray")]


def trials_of(told: dict[str, Any]) -> dict[str, Trial]:
    return {trial.name: trial for trial in read_trials(Path(told["out"]))}


def folder_of(told: dict[str, Any], trial: str) -> Path:
    return Path(told["out"]) / "trials" / trial


def in_background(what: Any) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_a_sweep_goes_on_past_trials_that_end_badly_and_repeats_nothing_when_it_is_resumed(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["pace@0.02", "diverges@5", "memory@5", "nulls@4", "killed@5"]
    told = settings(tmp_path, {"data.train": {"choices": kinds}}, search={"kind": "grid"})
    monkeypatch.chdir(tmp_path)
    relative = told | {"out": "sweep", "base": "base.yaml"}  # Ray's processes start elsewhere
    result = sweep(relative)
    found = trials_of(told)
    assert [found[name].params["data.train"] for name in sorted(found)] == kinds
    assert [found[name].status for name in sorted(found)] == [
        *("done", "diverged", "out_of_memory", "done", "done")
    ]
    good, diverged, memory, nulls, killed = (found[name] for name in sorted(found))
    assert "step 5: not finite: loss nan (rank0.log)" in diverged.reason
    assert "CUDA out of memory" in memory.reason
    assert good.best["step"] == 8
    assert [look["step"] for look in nulls.curve] == [2, 4, 6, 8]
    assert [math.isnan(look["canary_knn"]) for look in nulls.curve] == [False, True, False, False]
    assert [start["step"] for start in starts(Path(killed.folder))] == [0, 4]
    assert result["exit_code"] == 0
    again = sweep(relative, "resume=true")
    assert again["best"] == result["best"]
    for name, trial in found.items():
        assert len(starts(folder_of(told, name))) == (2 if trial is killed else 1)
        assert trials_of(told)[name] == trial


def test_asha_stops_the_poor_trial_whose_processes_then_are_gone_and_lets_the_good_one_save_its_end(
    ray: Any, tmp_path: Path
) -> None:
    space = {
        "optim.lr": {"choices": [1e-3, 1e-1]},
        "data.train": {"choices": ["pace@1.5"]},
    }  # seen by the reaper
    asha = {"kind": "asha", "grace": 0.25, "reduction": 2}
    told = settings(tmp_path, space, search={"kind": "grid"}, scheduler=asha, concurrent=1)
    sweep(told)
    found = trials_of(told)
    good, poor = found["t0000"], found["t0001"]
    assert (good.status, good.step) == ("done", 8)
    assert (folder_of(told, "t0000") / "run" / "summary.json").is_file()
    assert (poor.status, poor.step) == ("stopped", 2)
    assert not psutil.pid_exists(starts(folder_of(told, "t0001"))[0]["pid"])
    freed = json.loads((tmp_path / "sweep" / "freed.json").read_text())
    assert freed["t0001"]["killed"] == 0


def processes(ray: Any, name: str) -> list[psutil.Process]:
    """Actors of this cluster whose class is ``name``; Ray wraps TrialJob in ResourceTrainable."""
    mine = psutil.Process().children(recursive=True)
    return [one for one in mine if one.is_running() and f"ray::{name}" in " ".join(one.cmdline())]


def test_a_trial_goes_on_from_its_checkpoint_whatever_process_of_it_is_killed(
    ray: Any, tmp_path: Path
) -> None:
    space = {"optim.lr": {"choices": [1e-3, 1e-2]}, "data.train": {"choices": ["waits@5"]}}
    told = settings(tmp_path, space, search={"kind": "grid"}, job={"retries": 4})
    names = ["t0000", "t0001"]

    def last_starts(count: int) -> list[dict[str, Any]]:
        """Of both trials, when both have begun ``count`` times and wait at step 5."""
        found = [starts(folder_of(told, name)) for name in names]
        files = [folder_of(told, name) / "run" / "checkpoints/step_00000004/COMMITTED" for name in names]
        ready = all(len(one) == count for one in found) and all(file.exists() for file in files)
        return [one[-1] for one in found] if ready else []

    drilled = []

    def drill() -> None:
        first, second = until(lambda: last_starts(1))
        os.kill(first["pid"], signal.SIGKILL)
        psutil.Process(second["pid"]).parent().kill()
        drilled.append("rank and Ray worker")
        for count, name in enumerate(("TrainController", "ResourceTrainable"), start=2):
            until(partial(last_starts, count))
            killed = [one for one in processes(ray, name) if one.kill() is None]
            drilled.append(f"{len(killed)} {name}")
        until(lambda: last_starts(4))

    def drill_and_go() -> None:
        try:
            drill()
        finally:
            for name in names:
                (folder_of(told, name) / "go").touch()

    thread = in_background(drill_and_go)
    sweep(told)
    thread.join(10)
    assert drilled == ["rank and Ray worker", "2 TrainController", "2 ResourceTrainable"]
    for name, trial in trials_of(told).items():
        assert (trial.status, trial.step) == ("done", 8)
        assert [start["step"] for start in starts(folder_of(told, name))] == [0, 4, 4, 4]
        assert [look["step"] for look in trial.curve] == [2, 4, 6, 8]
        assert not any(psutil.pid_exists(start["pid"]) for start in starts(folder_of(told, name)))


def test_an_exploit_goes_on_from_the_donors_weights_with_settings_inside_their_range(
    ray: Any, tmp_path: Path
) -> None:
    space = {
        # By this seed one draw is worse at any step than the other at any: whoever is ahead, the same one is copied.
        "optim.lr": {"low": 1e-3, "high": 1e3, "log": True},
        "data.train": {"choices": ["waits@1 pace@2"]},
    }
    pbt = {"kind": "pbt", "interval": 0.25, "quantile": 0.5, "resample": 0}
    told = settings(tmp_path, space, search={"trials": 2}, scheduler=pbt, seed=10)

    def together() -> None:
        until(lambda: all(starts(folder_of(told, name)) for name in ("t0000", "t0001")))
        for name in ("t0000", "t0001"):
            (folder_of(told, name) / "go").touch()

    in_background(together)
    sweep(told)
    found = trials_of(told)
    taken = [trial for trial in found.values() if trial.parents]
    assert taken
    for trial in found.values():
        assert (trial.status, trial.step) == ("done", 8)
        for number, parent in enumerate(trial.parents, start=1):
            if number < len(trial.parents):  # it may have been replaced before it had begun
                continue
            donor, _, step = parent.partition("@")
            run = Path(trial.folder) / f"run{number}"
            begun = [start for start in starts(Path(trial.folder)) if start["run"] == run.name]
            assert begun[0]["step"] == int(step)
            assert 1e-3 <= begun[0]["lr"] <= 1e3
            state = json.loads((run / "checkpoints/step_00000008/state.json").read_text())
            before = [who for who, at, _ in state["path"] if at == int(step)]
            assert before == [donor]
            assert yaml.safe_load((run / "config.yaml").read_text())["optim"]["lr"] == begun[0]["lr"]


def test_a_job_that_does_not_fit_the_cluster_is_refused_and_leaves_the_folder_free(
    ray: Any, tmp_path: Path
) -> None:
    told = settings(tmp_path, {"optim.lr": {"choices": [1e-3]}}, job={"workers": 3, "cpus": 2})
    with pytest.raises(UsageError, match="needs 3 workers of 2 CPU each, and the cluster has room for 2"):
        sweep(told)
    pbt = {"scheduler": {"kind": "pbt"}, "search": {"trials": 3}, "job": {"cpus": 2}}
    with pytest.raises(
        UsageError, match="a population of 3 trials runs all at once, and the cluster has room for 2"
    ):
        sweep(settings(tmp_path, {"optim.lr": {"low": 1e-4, "high": 1e-2}}, **pbt))
    with pytest.raises(UsageError, match=r"1 CPU and 1 GPU each, and the cluster has room for 0 .* 0 GPU"):
        sweep(told | {"job": {"workers": 1, "gpus": 1}})
