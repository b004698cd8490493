"""A number that is not finite on one rank stops all ranks in the same step, before the update, or costs one update."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.faulty import BAD_SAMPLE
from tests.faults.zygote import Ranks, Zygote

SETTINGS = ["ledger=true", "checkpoint.keep=9"]


def drill(zygote: Zygote, words: list[str], fault: str, *, step: int, codes: list[int]) -> Ranks:
    with zygote.ranks(2, fault, 1, step, ["adapt", *words, *SETTINGS]) as ranks:
        assert ranks.wait(seconds=180) == codes, ranks.stderr(0) + ranks.stderr(1)
        assert not ranks.alive()
    return ranks


def bad_key(run: Path, step: int) -> str:
    """Of the sample that was made NaN in ``step``, by the ledger of the rank that suffered it."""
    (file,) = (run / "ledger").glob("*_rank_0001_of_0002.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    (keys,) = [row["keys"] for row in rows if row["step"] == step]
    key: str = keys[BAD_SAMPLE]
    return key


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step_{step:08d}"
    return {
        f"{file}/{name}": tensor
        for file in ("student", "teacher", "optimizer", "buffers")
        for name, tensor in load_file(folder / f"{file}.safetensors").items()
    }


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_all_ranks_stop_before_the_update_and_record_the_one_sample(
    zygote: Zygote, recipe: list[str], tmp_path: Path, centering: str
) -> None:
    run = tmp_path / "run"
    words = [*recipe, f"objective.centering={centering}", "log_every=1"]
    ranks = drill(zygote, words, "nan-from", step=3, codes=[1, 1])
    (said,) = ranks.errors()
    assert "step 3: not finite: " in said
    assert "1 sample of rank 1" in said
    folder = run / "diverged" / "step_00000003"
    found = json.loads((folder / "samples.json").read_text())
    assert found["step"] == 3
    assert list(found["ranks"]) == ["1"]
    assert len(found["ranks"]["1"]["keys"]) == 1
    assert found["ranks"]["1"]["values"]["total"] == "nan"
    before = tensors(run, 2)
    kept = {
        f"{file}/{name}": tensor
        for file in ("student", "teacher", "optimizer", "buffers")
        for name, tensor in load_file(folder / f"{file}.safetensors").items()
    }
    assert before.keys() == kept.keys()
    assert all(torch.equal(before[name], kept[name]) for name in before)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_00000002"]


def test_within_the_budget_an_update_is_left_out_and_all_that_follows_is_finite(
    zygote: Zygote, recipe: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [*recipe, "guard.skip_budget=1", "objective.centering=softmax", "checkpoint.every=1"]
    drill(zygote, words, "nan-once", step=4, codes=[0, 0])
    (line,) = rows(run / "skipped.jsonl")
    assert line["step"] == 4
    assert line["ranks"] == {"1": {"keys": [bad_key(run, 4)], "values": line["ranks"]["1"]["values"]}}
    found = {row["step"]: row for row in rows(run / "metrics.jsonl")}
    assert [found[step]["skipped"] for step in range(1, 7)] == [0, 0, 0, 1, 1, 1]
    assert found[4]["loss"] is None
    assert found[5]["loss"] is not None
    third, fourth, sixth = (tensors(run, step) for step in (3, 4, 6))
    assert all(torch.equal(third[name], fourth[name]) for name in third)
    assert all(torch.isfinite(tensor).all() for tensor in sixth.values())
    assert any(not torch.equal(fourth[name], sixth[name]) for name in fourth)


def test_more_than_the_budget_stops_all_ranks_with_the_first_cause(
    zygote: Zygote, recipe: list[str], tmp_path: Path
) -> None:
    words = [*recipe, "guard.skip_budget=9", "guard.skip_in_a_row=3", "log_every=100"]
    ranks = drill(zygote, words, "nan-from", step=2, codes=[1, 1])
    (said,) = ranks.errors()
    assert "step 4: not finite" in said
    assert "2 updates were left out before, the first at step 2: dino_global nan" in said
    assert "guard.skip_in_a_row=3" in said
    assert [line["step"] for line in rows(tmp_path / "run" / "skipped.jsonl")] == [2, 3]
