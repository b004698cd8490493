"""The canary tells how good the teacher's features are, changes nothing of the run, and keeps what was best."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from essa_dist import adapt
from essa_dist.engine.recording.canary import Canary, CanaryConfig
from essa_dist.engine.recording.metrics import MEASURED
from essa_dist.engine.recording.probe import Probe
from essa_dist.errors import UsageError
from essa_dist.export.models import load_model
from essa_dist.runfolder import best_checkpoint, committed_checkpoints
from tests.distributed.launching import accelerate, run, torchrun
from tests.engine.recording.probing import colours, probe


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in found]


@pytest.fixture
def canary(labelled: str) -> list[str]:
    return [f"canary.data={labelled}", "canary.every=2", "canary.k=3", "log_every=3"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Values that the looks of a run find, one after the other; to be filled by the test."""
    values: list[float] = []
    coming: Iterator[float] = (values[i] for i in range(99))
    monkeypatch.setattr(Probe, "value", lambda self, embed: next(coming))
    return values


def test_without_labels_a_run_is_watched_by_the_rank_of_its_features(
    recipe: list[str], tmp_path: Path
) -> None:
    adapt(None, *recipe, "canary.every=4", "log_every=6")
    assert [row["step"] for row in rows(tmp_path / "run") if "canary_rankme" in row] == [0, 4, 6]


def test_a_run_is_watched_by_the_protocol_that_was_asked_for(
    recipe: list[str], canary: list[str], tmp_path: Path
) -> None:
    adapt(None, *recipe, *canary, "canary.protocol=linear", "canary.stop_after=1", "optim.lr=1e-9")
    watched = [row for row in rows(tmp_path / "run") if "canary_linear" in row]
    assert [row["step"] for row in watched] == [0, 2]  # nothing moves: no new best
    assert all(0.2 < row["canary_linear"] <= row["canary_linear_best"] <= 1 for row in watched)
    assert not any("canary_knn" in row for row in watched)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("canary.k=19", r"canary\.k=19 is more than the 1\d images .* at most 1\d"),
        ("canary.data=nowhere", "nowhere"),
        ("canary.images=3", "images"),
        ("canary.protocol=lineer", "linear"),
    ],
)
def test_a_canary_that_can_not_be_asked_is_refused_before_the_run(
    recipe: list[str], canary: list[str], tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(Exception, match=message) as error:
        adapt(None, *recipe, *canary, override)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_canary_changes_nothing_of_the_run(recipe: list[str], canary: list[str], tmp_path: Path) -> None:
    adapt(None, *recipe, "backbone.drop_path=0.2")
    adapt(None, *recipe, *canary, "backbone.drop_path=0.2", f"out={tmp_path / 'watched'}")
    plain, watched = (
        committed_checkpoints(tmp_path / "run")[-1],
        committed_checkpoints(tmp_path / "watched")[-1],
    )
    for name in ("student", "teacher", "optimizer", "buffers"):
        ours, theirs = load_file(plain / f"{name}.safetensors"), load_file(watched / f"{name}.safetensors")
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name


def test_a_resumed_canary_goes_on_exactly(recipe: list[str], canary: list[str], tmp_path: Path) -> None:
    words = [*recipe, *canary, "checkpoint.every=3", "checkpoint.keep=9"]
    adapt(None, *words)
    straight, state = (
        rows(tmp_path / "run"),
        (tmp_path / "run" / "checkpoints" / "step_00000006" / "state.json"),
    )
    before = json.loads(state.read_text())["canary"]
    shutil.rmtree(state.parent)
    adapt(None, *words, "resume=true")
    assert rows(tmp_path / "run") == straight
    assert json.loads(state.read_text())["canary"] == before
    assert [row["step"] for row in straight] == [0, 2, 3, 4, 6]


@pytest.mark.parametrize(("strategy", "protocol"), [("ddp", "linear"), ("zero3", "knn")])
def test_ranks_together_see_what_one_process_sees(
    recipe: list[str], canary: list[str], tmp_path: Path, strategy: str, protocol: str
) -> None:
    words = [*recipe, *canary, "optim.lr=1e-3", "duration=4", f"canary.protocol={protocol}"]
    adapt(None, *words)
    launcher = torchrun(2) if strategy == "ddp" else accelerate(strategy, 2)
    ended = run([*launcher, "-m", "essa_dist", "adapt", *words, f"out={tmp_path / 'two'}"], timeout=180)
    assert ended.exit_code == 0, ended.stderr
    assert f"{strategy} on 2 x cpu" in ended.stderr
    seen = (
        [(row["step"], row.get(f"canary_{protocol}")) for row in rows(tmp_path / n)] for n in ("run", "two")
    )
    one, two = ({step: value for step, value in run if value is not None} for run in seen)
    assert list(one) == [0, 2, 4]
    assert two == pytest.approx(one, abs=1.01 / 36)  # by rounding, one of 36 images may have other neighbours
    ranks = [json.loads(line) for line in (tmp_path / "two" / "ranks.jsonl").read_text().splitlines()]
    assert all(len(row["step_s"]) == 2 for row in ranks)
    measured = next(row for row in ranks if "comm_bytes" in row)
    student = load_file(committed_checkpoints(tmp_path / "two")[-1] / "student.safetensors")
    gradients = 4 * sum(tensor.numel() for tensor in student.values())
    at_most = 1.1 if strategy == "ddp" else 50  # ZeRO-3 gathers every tensor before each use
    assert all(gradients <= sent <= at_most * gradients for sent in measured["comm_bytes"])
    assert all(0 < t < s for t, s in zip(measured["comm_s"], measured["comm_step_s"], strict=True))


def look(canary: Canary, values: list[float], monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    reasons = []
    for step, value in enumerate(values):
        monkeypatch.setattr(canary.probe, "value", lambda embed, value=value: value)
        canary.look(step)
        reasons.append(canary.reason_to_stop())
    return reasons


def test_it_stops_at_a_drop_below_the_start(labelled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Canary(CanaryConfig(every=1, max_drop=0.1), probe(labelled), colours)
    reasons = look(of, [0.8, 0.9, 0.73, 0.71], monkeypatch)
    assert reasons[:3] == [None] * 3
    assert "fell from 80.0 % to 71.0 %" in str(reasons[3])


def test_it_stops_after_looks_without_a_new_best(labelled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Canary(CanaryConfig(every=1, stop_after=2), probe(labelled), colours)
    reasons = look(of, [0.5, 0.6, 0.6, 0.7, 0.7, 0.69], monkeypatch)
    assert reasons[:5] == [None] * 5
    assert "70.0 % after step 3" in str(reasons[5])
    watching = Canary(CanaryConfig(every=1), probe(labelled), colours)
    assert look(watching, [0.9, 0.1, 0.1, 0.1], monkeypatch) == [None] * 4


@pytest.mark.parametrize("other", [{"images": 30}, {"k": 4}, {"protocol": "linear"}, {"protocol": "rankme"}])
def test_values_of_another_probe_are_not_compared(
    labelled: str, caplog: pytest.LogCaptureFixture, other: dict[str, Any]
) -> None:
    before, now = (
        Canary(CanaryConfig(), probe(labelled), colours),
        Canary(CanaryConfig(), probe(labelled, **other), colours),
    )
    before.look(4)
    with caplog.at_level(logging.WARNING):
        now.load(before.state())
    assert now.best is None
    assert "start anew" in caplog.text


def test_a_stopped_run_ends_well_with_its_checkpoint(
    recipe: list[str],
    canary: list[str],
    scripted: list[float],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scripted += [0.8, 0.9, 0.2]
    with caplog.at_level(logging.WARNING):
        result = adapt(None, *recipe, *canary, "canary.max_drop=0.5")
    assert (result["step"], Path(result["checkpoint"]).name) == (4, "step_00000004")
    assert "the canary stops the run after step 4 of 6" in caplog.text
    assert rows(tmp_path / "run")[-1]["step"] == 4
    scripted += [0.2, 0.3]
    assert adapt(None, *recipe, *canary, "resume=true")["step"] == 6  # the rule was taken away


def test_rollback_keeps_the_best_and_gives_it_to_evaluation_and_export(
    recipe: list[str], canary: list[str], scripted: list[float], tmp_path: Path
) -> None:
    scripted += [0.5, 0.9, 0.8, 0.7]
    folder = tmp_path / "run"
    words = [*recipe, *canary, "canary.rollback=true", "checkpoint.keep=1", "checkpoint.every=3"]
    result = adapt(None, *words)
    assert [c.name for c in committed_checkpoints(folder)] == ["step_00000002", "step_00000006"]
    best = folder / "checkpoints" / "step_00000002"
    assert (best_checkpoint(folder), result["checkpoint"]) == (best, str(best))
    teacher, saved = load_model(str(folder)), load_file(best / "teacher.safetensors")
    trunk = {name.removeprefix("backbone."): t for name, t in saved.items() if name.startswith("backbone.")}
    assert all(torch.equal(p, trunk[name]) for name, p in teacher.named_parameters() if name in trunk)
    assert adapt(None, *words, "resume=true")["step"] == 6  # from the newest: nothing is left to do
    scripted += [0.7]
    adapt(None, *words, "resume=true", "canary.rollback=false")
    assert best_checkpoint(folder) is None


def test_where_nothing_was_better_the_frozen_model_is_the_result(
    recipe: list[str], canary: list[str], scripted: list[float], tmp_path: Path
) -> None:
    scripted += [0.9, 0.8, 0.7, 0.6]
    result = adapt(None, *recipe, *canary, "canary.rollback=true")
    assert Path(result["checkpoint"]).name == "step_00000000"
    student, teacher = (
        load_file(Path(result["checkpoint"]) / f"{n}.safetensors") for n in ("student", "teacher")
    )
    assert all(torch.equal(t, teacher[name]) for name, t in student.items())


@pytest.mark.parametrize(
    "idle", ["data=PACKED", "protocol=linear", "max_drop=0.1", "stop_after=5", "rollback=true"]
)
def test_what_hangs_on_looks_that_nobody_asked_for_is_refused(recipe: list[str], idle: str) -> None:
    name = idle.split("=")[0]
    with pytest.raises(UsageError, match=f"canary.{name} does nothing without canary.every"):
        adapt(None, *recipe, f"canary.{idle}")


def test_a_run_that_the_canary_ended_stays_ended_when_it_is_started_once_more(
    recipe: list[str], canary: list[str], scripted: list[float], tmp_path: Path
) -> None:
    scripted += [0.5, 0.1]
    again = [*recipe, *canary, "canary.max_drop=0.5", "resume=true"]
    first = adapt(None, *again)
    second = adapt(None, *again)
    assert (first["step"], second["step"]) == (2, 2)
    assert second["checkpoint"] == first["checkpoint"]
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 2]
