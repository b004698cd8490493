"""Updates are left out only within the budget, the record names who made them necessary, and nobody else."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from essa_dist.data.batch import Batch
from essa_dist.engine.watching.guard import GuardConfig
from essa_dist.engine.watching.skips import SkipBudget, SkipRecord, budget, cause
from essa_dist.engine.watching.suspects import SampleWatch, blame, findings, in_words


def spent(allowed: SkipBudget, *steps: int) -> list[bool]:
    return [allowed.spend(step, f"cause of {step}") for step in steps]


def test_a_budget_of_0_stops_at_the_first() -> None:
    allowed = SkipBudget(0, 3)
    assert spent(allowed, 5) == [False]
    assert allowed.why() == ""


def test_one_more_than_the_budget_stops_and_tells_the_first_cause() -> None:
    allowed = SkipBudget(2, 9)
    assert spent(allowed, 5, 8, 30) == [True, True, False]
    assert allowed.why() == (
        " That is more than guard.skip_budget=2 allows: 2 updates were left out before, "
        "the first at step 5: cause of 5."
    )


def test_too_many_in_a_row_stop_whatever_is_left() -> None:
    allowed = SkipBudget(100, 3)
    assert spent(allowed, 5, 6, 8, 9, 10) == [True, True, True, True, False]
    assert "guard.skip_in_a_row=3" in allowed.why()


def test_a_resumed_run_goes_on_with_what_is_left_of_its_budget() -> None:
    config = GuardConfig(skip_budget=2)
    assert spent(budget(config, {"skipped": 1}), 5, 9) == [True, False]
    assert spent(budget(config, {}), 5, 9) == [True, True]


def test_the_cause_is_what_is_not_finite() -> None:
    assert cause({"total": math.nan, "koleo": 0.3, "grad_norm": math.inf}) == "total nan, grad_norm inf"


class Rows(NamedTuple):
    cls: Tensor


class Trunk(nn.Module):
    def forward(self, crops: Tensor) -> Rows:
        return Rows(crops.flatten(1))


class Objective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()

    def forward(self, work: Any) -> None:
        if isinstance(work, Batch):
            self.trunk(work.global_crops.flatten(0, 1))
            self.trunk(work.local_crops.flatten(0, 1))
        else:
            self.trunk(torch.full((7, 3), torch.nan))  # work that is not the losses of a batch


def batch(keys: str, step: int, *, globals_bad: str = "", locals_bad: str = "") -> Batch:
    """Each sample a key of one letter; those named are NaN in one of their crops."""
    crops = [torch.zeros(2, len(keys), 3, 4, 4), torch.zeros(5, len(keys), 3, 2, 2)]
    for found, bad in zip(crops, (globals_bad, locals_bad), strict=True):
        for key in bad:
            found[-1, keys.index(key), 1, 0, 1] = torch.nan
    masks = torch.zeros(2, len(keys), 4, dtype=torch.bool)
    return Batch(global_crops=crops[0], local_crops=crops[1], masks=masks, keys=tuple(keys), step=step)


def test_the_samples_whose_class_tokens_are_not_finite_are_found_in_every_crop_and_micro_batch() -> None:
    objective = Objective()
    watch = SampleWatch(objective, objective.trunk)
    objective(batch("abc", 4, globals_bad="a"))
    objective(batch("def", 5, globals_bad="e"))
    objective(None)
    objective(batch("ghi", 5, globals_bad="h", locals_bad="ih"))
    assert watch.not_finite() == ["e", "h", "i"]
    objective(batch("jkl", 6))
    assert watch.not_finite() == []


def found(keys: str, *, suspects: str = "", loss: float = 0.5) -> dict[str, Any]:
    return json.loads(json.dumps(findings({"total": loss}, suspects, keys)))  # as it comes from another rank


def test_a_rank_whose_loss_was_only_infected_by_another_is_not_blamed() -> None:
    blamed = blame([found("abc", loss=math.nan), found("def", suspects="e", loss=math.nan), found("ghi")])
    assert blamed == {"1": {"keys": ["e"], "values": {"total": "nan"}}}
    assert in_words(blamed) == "1 sample of rank 1"


def test_without_a_suspect_all_samples_of_the_ranks_with_such_a_loss_are_named() -> None:
    blamed = blame([found("abc"), found("def", loss=math.inf)])
    assert blamed == {"1": {"keys": ["d", "e", "f"], "values": {"total": "inf"}}}


def test_a_gradient_is_of_all_ranks() -> None:
    blamed = blame([found("abc"), found("def")])
    assert [of_rank["keys"] for of_rank in blamed.values()] == [["a", "b", "c"], ["d", "e", "f"]]
    assert in_words(blamed) == "6 samples of ranks 0, 1"


def test_the_record_drops_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    record = SkipRecord(tmp_path, start_step=0, enabled=True)
    assert not (tmp_path / "skipped.jsonl").exists()
    for step in (3, 7):
        record.write(step, blame([found("abc", suspects="b", loss=math.nan)]))
    SkipRecord(tmp_path, start_step=5, enabled=False).write(
        6, {}
    )  # another rank: writes nothing, drops nothing
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 2
    SkipRecord(tmp_path, start_step=5, enabled=True)
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 3, "ranks": {"0": {"keys": ["b"], "values": {"total": "nan"}}}}
