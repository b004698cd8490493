"""Rows say what happened, once for each step, and what was measured is told apart from what was computed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from essa_dist.engine.recording.metrics import MEASURED, Metrics
from essa_dist.engine.recording.telemetry import SETTLED, Ranks, Telemetry

CPU = torch.device("cpu")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(run: Path, steps: range, *, start: int = 0) -> None:
    with Metrics(run, start_step=start, enabled=True) as metrics:
        for step in steps:
            ranks = {"step_s": [0.1, step], "comm_s": [math.nan, math.nan]}
            metrics.write({"step": step, "loss": 1 / (step + 1)}, {"step_s": 0.5 * step}, ranks=ranks)


def test_resumed_rows_follow_those_of_the_restored_step(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed
    write(tmp_path, range(4, 8), start=3)
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == list(range(8))
    assert [row["step"] for row in rows(tmp_path / "ranks.jsonl")] == list(range(8))
    write(tmp_path, range(2))  # a run that begins again before its first checkpoint
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1]


def test_every_number_of_a_row_is_in_tensorboard(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("step_s")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert len(board.Scalars("loss")) == 3


def test_lists_by_rank_hold_what_was_measured_and_no_nan(tmp_path: Path) -> None:
    with Metrics(tmp_path, start_step=0, enabled=True) as metrics:
        metrics.write({"step": 1, "loss": math.inf}, ranks={"a": [1.0, math.nan], "b": [math.nan, math.nan]})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'
    assert rows(tmp_path / "ranks.jsonl") == [{"step": 1, "a": [1.0, None]}]


def test_a_measurement_that_comparisons_of_runs_would_not_know_is_refused(tmp_path: Path) -> None:
    with (
        Metrics(tmp_path, start_step=0, enabled=True) as metrics,
        pytest.raises(ValueError, match="fan_speed"),
    ):
        metrics.write({"step": 1}, {"fan_speed": 3.0})


def test_only_the_enabled_process_writes(tmp_path: Path) -> None:
    with Metrics(tmp_path, start_step=0, enabled=False) as metrics:
        metrics.write({"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_row_tells_the_spread_over_ranks() -> None:
    lists = {"step_s": [0.3, 0.1, 0.2], "peak_memory_gib": [1.0, 3.0, 2.0], "data_wait_s": [0.0, 0.05, 0.01]}
    comm = {"comm_s": [0.01, 0.06, 0.08], "comm_step_s": [0.1, 0.1, 0.1], "comm_bytes": [5.0, 7.0, 6.0]}
    row = Ranks(lists | comm).summary()
    assert {key: round(value, 9) for key, value in row.items()} == {
        "step_s": 0.2,
        "step_s_min": 0.1,
        "step_s_max": 0.3,
        "peak_memory_gib": 3.0,
        "data_wait_s_max": 0.05,
        "comm_s": 0.06,
        "comm_s_min": 0.01,
        "comm_s_max": 0.08,
        "comm_share": 0.6,
        "comm_bytes": 7.0,
    }
    assert row.keys() <= MEASURED
    unknown = dict.fromkeys(comm, [math.nan] * 3)
    assert not any("comm" in key for key in Ranks(lists | unknown).summary())
    alone = Ranks({key: values[:1] for key, values in (lists | unknown).items()}).summary()
    assert alone == {"step_s": 0.3, "peak_memory_gib": 1.0}


def test_times_are_means_since_the_last_row_and_count_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 13.0, 20.0, 25.0])
    monkeypatch.setattr("essa_dist.engine.recording.telemetry.time.perf_counter", lambda: next(clock))
    telemetry = Telemetry(CPU, communication_every=0)
    for waited in (0.5, 1.5):
        with telemetry.step(logged=True, waited=waited):
            pass
    first = telemetry.gather({"loss": 4.0}).lists
    assert (first["step_s"], first["data_wait_s"], first["loss"]) == ([3.0], [1.0], [4.0])
    with telemetry.step(logged=True, waited=0.0):
        pass
    assert telemetry.gather().lists["step_s"] == [5.0]
    assert first["peak_memory_gib"][0] > 0.01


def test_communication_is_measured_at_logged_steps_so_far_apart_as_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[int] = []

    class Meter:
        traffic = None

        def __init__(self, device: torch.device) -> None:
            measured.append(step)

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr("essa_dist.engine.recording.telemetry.TrafficMeter", Meter)
    telemetry = Telemetry(CPU, communication_every=5)
    for step in range(20):
        with telemetry.step(logged=step % 3 == 0, waited=0.0):
            pass
    assert measured == [3, 9, 15]
    assert measured[0] >= SETTLED
    never = Telemetry(CPU, communication_every=0)
    for _ in range(20):
        with never.step(logged=True, waited=0.0):
            pass
    assert measured == [3, 9, 15]
