"""An update that is not finite is left out within guard.skip_budget, and stops the run beyond it."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.errors import EssaError, Preempted
from tests.finetune.conftest import Tuned
from tests.finetune.test_stops import ended_by, signal_in_step

Tune = Callable[..., Tuned]
verb = importlib.import_module("essa_dist.finetune.finetune")
EACH = ("checkpoint.every=1", "checkpoint.keep=9", "validation.every=6", "guard.skip_budget=1")


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The second image of the batches of these updates, from 1, has a pixel that is not a number."""
    real = verb.Finetuning.to_device

    def to_device(self: Any, batch: LabelledBatch, training: Any) -> LabelledBatch:
        ready: LabelledBatch = real(self, batch, training)
        if batch.step + 1 in steps:
            ready.images[1, 0, 5, 6] = float("nan")
        return ready

    monkeypatch.setattr(verb.Finetuning, "to_device", to_device)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def student(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "student.safetensors")


@pytest.mark.parametrize("task", ["cells", "nuclei"])
def test_one_bad_batch_is_left_out_and_named(
    task: str, tune: Tune, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    poison(monkeypatch, 3)
    tuned = tune("run", request.getfixturevalue(task), *EACH)
    (left_out,) = lines(tuned.run / "skipped.jsonl")
    assert left_out["step"] == 3
    assert len(left_out["ranks"]["0"]["keys"]) == 1
    second, third, last = (student(tuned.run, step) for step in (2, 3, 6))
    assert all(torch.equal(second[name], third[name]) for name in second)
    assert all(torch.isfinite(tensor).all() for tensor in last.values())
    assert any(not torch.equal(third[name], last[name]) for name in last)
    assert [row["skipped"] for row in lines(tuned.run / "metrics.jsonl") if "skipped" in row] == [
        0,
        0,
        1,
        1,
        1,
        1,
    ]
    assert tuned.result["test"]["n"] > 0


def test_what_was_left_out_before_a_stop_counts_after_it(
    cells: str, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, 5)
    with ended_by(monkeypatch, Preempted, "stopped by") as patched:
        signal_in_step(patched, 3)
        tune("run", cells, *EACH)
    with pytest.raises(EssaError, match=r"step 5: not finite: .*more than guard\.skip_budget=1 allows"):
        tune("run", cells, *EACH, "resume=true")
    assert (tmp_path / "run" / "diverged" / "step_00000005" / "samples.json").is_file()


def test_without_a_budget_the_first_bad_batch_stops_the_run(
    cells: str, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2)
    with pytest.raises(
        EssaError, match=r"step 2: not finite: total nan .1 sample of rank 0.; nothing was updated"
    ):
        tune("run", cells)
