"""Trackers get every row, a resumed run goes on in the same place, and no tracker can stop a run."""

import importlib.util
import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from essa_dist import adapt
from essa_dist.engine.recording import trackers
from essa_dist.engine.recording.trackers import TrackerName, Trackers, check_trackers
from essa_dist.errors import Preempted, UsageError

Row = tuple[int, dict[str, float]]


class Memory:
    """A tracker that remembers; ``runs`` by id."""

    runs: dict[str, list[Row]]
    ends: list[str]

    def __init__(self, run: Path, config: Mapping[str, object]) -> None:
        self.config = config

    def start(self, known: str | None) -> str:
        self.id = known or f"run{len(self.runs)}"
        self.runs.setdefault(self.id, [])
        return self.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.runs[self.id].append((step, dict(values)))

    def finish(self, status: str) -> None:
        self.ends.append(status)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    Memory.runs, Memory.ends = {}, []
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Memory)
    return Memory


def stopped(name: TrackerName, run: Path, config: Mapping[str, object], row: dict[str, float]) -> None:
    """A run of one row that a signal ends."""
    with Trackers([name], run, config) as tracked:
        tracked.log(1, row)
        raise Preempted("a signal")


def test_a_missing_package_is_told_at_the_start_with_its_extra(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else real(name, *a)
    )
    with pytest.raises(UsageError, match=r"track=mlflow needs .*: pip install 'essa_dist\[mlflow\]'"):
        adapt(None, *recipe, "track=mlflow")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="wandb"):
        adapt(None, *recipe, "track=tensorbored")


def test_a_resumed_run_goes_on_in_the_same_tracked_run(memory: type[Memory], tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        stopped("wandb", tmp_path, {"seed": 3}, {"loss": 2.0})
    with Trackers(["wandb"], tmp_path, {"seed": 3}) as tracked:
        tracked.log(2, {"loss": 1.0})
    assert memory.runs == {"run0": [(1, {"loss": 2.0}), (2, {"loss": 1.0})]}
    assert memory.ends == ["preempted", "finished"]


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_costs_one_warning_and_never_the_run(
    memory: type[Memory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    def fail(*args: object) -> None:
        raise SystemExit("no network")  # not even an Exception

    monkeypatch.setattr(memory, method, fail)
    with caplog.at_level(logging.WARNING), Trackers(["wandb"], tmp_path, {}) as tracked:
        for step in range(5):
            tracked.log(step, {"loss": 1.0})
    assert len(caplog.messages) == 1
    assert "no network" in caplog.text


def test_a_server_that_does_not_answer_keeps_nobody_waiting(
    memory: type[Memory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(memory, "log", lambda *args: released.wait(30))
    monkeypatch.setattr(trackers, "QUEUE", 4)
    monkeypatch.setitem(trackers.GOODBYE_S, "finished", 0.3)
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING), Trackers(["wandb"], tmp_path, {}) as tracked:
        for step in range(50):
            tracked.log(step, {"loss": 1.0})
    assert time.monotonic() - begin < 5
    released.set()
    assert [
        sum(words in message for message in caplog.messages) for words in ("can't keep up", "last rows")
    ] == [1, 1]


def test_a_run_hands_its_rows_over(
    memory: type[Memory], recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("essa_dist.engine.train.check_trackers", lambda names: None)
    adapt(None, *recipe, "track=wandb", "duration=2")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert memory.runs["run0"] == [(row.pop("step"), row) for row in rows]


def test_wandb_offline_keeps_every_row_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed: pip install essa_dist[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in ((1, 2), (3,)):
        with Trackers(["wandb"], tmp_path, {"optim.lr": 0.5}) as tracked:
            for step in steps:
                tracked.log(step, {"loss": 1 / step})
    known = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    written = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.name for path in written} == {f"run-{known}.wandb"}
    stored = b"".join(path.read_bytes() for path in written)
    assert all(word in stored for word in (b"optim.lr", b"loss", b"0.3333333"))


def test_mlflow_keeps_every_row_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install essa_dist[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setitem(trackers.GOODBYE_S, "preempted", 60.0)
    config = {f"key{i}": i for i in range(150)}
    with pytest.raises(Preempted):
        stopped("mlflow", tmp_path, config, {"loss": 1.0, "rankme": float("nan")})
    client = mlflow.MlflowClient()
    known = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert client.get_run(known).info.status == "KILLED"
    with Trackers(["mlflow"], tmp_path, config) as tracked:
        tracked.log(2, {"loss": 0.5})
    found = client.get_run(known)
    assert (found.info.status, found.info.run_name) == ("FINISHED", tmp_path.name)
    assert len(found.data.params) == 150
    assert [(m.step, m.value) for m in client.get_metric_history(known, "loss")] == [(1, 1.0), (2, 0.5)]


def test_an_unreachable_mlflow_server_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install essa_dist[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING), Trackers(["mlflow"], tmp_path, {}) as tracked:
        tracked.log(1, {"loss": 1.0})
    assert "which goes on without it" in caplog.text
    assert check_trackers(["mlflow"]) is None
