"""A run goes on from its checkpoint on other ranks and under another strategy; always in fresh processes.

At the same layout it ends where the uninterrupted run ends, bit for bit; elsewhere it sees the same samples in the same
order, and its losses and tensors differ by what another order of summation does.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from essa_dist.export.models import base_model, load_model
from essa_dist.export.saved import FILES
from essa_dist.report.ledger import LedgerConfig, check_ledger
from essa_dist.runfolder import committed_checkpoints
from tests.distributed.launching import TOLD, launch, rank_environments
from tests.engine.conftest import packed

__all__ = ["packed"]

TOLERANCE = 1e-4
"""Of losses and, beside its largest number, of every tensor after 8 updates in fp32 at another layout."""
STEPS = 12  # of 4 of 20 images: two epochs and a half

# One worker: each would make the uninterrupted runs anew.
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("layouts")]


@pytest.fixture(scope="module")
def go(packed: str) -> Callable[..., None]:
    """``go(run, "zero2", 2)`` starts or resumes a run in fresh processes and lets it end."""
    recipe = [
        f"data.train={packed}",
        f"duration={STEPS}",
        "batch_size=4",
        "precision=fp32",
        "device=cpu",
        "threads=1",
        "log_every=1",
        "ledger=true",
        "resume=true",
        "backbone.name=test_vit",
        "backbone.weights=random",
        "adapter={kind: lora, dropout: 0}",  # dropout is drawn by each rank, so other ranks drop others
        "objective.head={prototypes: 32, hidden: 16, bottleneck: 8}",
        "data.crops={policy: medical, global_size: 48, local_size: 32, n_local: 2}",
        "data.workers=0",
        "checkpoint={every: 2, keep: 9}",
        "schedule.freeze_last_layer=3",
        "optim.lr=1e-3",
    ]

    def go(run: Path, strategy: str, ranks: int) -> None:
        words = ["-m", "essa_dist", "adapt", *recipe, f"out={run}"]
        env = {} if strategy == "single" else rank_environments(ranks)[0] | TOLD[strategy]
        ends = launch(ranks, words, timeout=240, env=env)  # which gives each its own rank
        assert [end.exit_code for end in ends] == [0] * ranks, "\n".join(end.stderr for end in ends)
        assert f"{strategy} on {ranks} x cpu" in ends[0].stderr

    return go


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, go: Callable[..., None]) -> Callable[[str], Path]:
    """The uninterrupted run of a strategy on two ranks."""
    made: dict[str, Path] = {}

    def straight(strategy: str) -> Path:
        if strategy not in made:
            made[strategy] = tmp_path_factory.mktemp(strategy) / "run"
            go(made[strategy], strategy, 1 if strategy == "single" else 2)
        return made[strategy]

    return straight


def stopped_at(run: Path, step: int, copy: Path) -> Path:
    """The folder of ``run`` as if it had been killed a while after its checkpoint of ``step``."""
    shutil.copytree(run, copy)
    for folder in committed_checkpoints(copy):
        if folder.name > f"step_{step:08d}":
            shutil.rmtree(folder)
    assert committed_checkpoints(copy)[-1].name == f"step_{step:08d}"
    return copy


def end(run: Path) -> dict[str, torch.Tensor]:
    last = committed_checkpoints(run)[-1]
    assert last.name == f"step_{STEPS:08d}"
    return {
        f"{file}/{name}": t for file in FILES for name, t in load_file(last / f"{file}.safetensors").items()
    }


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_samples(run: Path) -> list[str]:
    """That every sample was seen when the plan says so, whoever saw it; the starts that the ledger knows of."""
    found = check_ledger(LedgerConfig(run=str(run)))
    assert (found["steps"], found["repeated"], found["skipped"], found["not_as_planned"]) == (STEPS, 0, 0, 0)
    starts: list[str] = found["starts"]
    return starts


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
def test_at_the_same_layout_a_resumed_run_ends_as_the_uninterrupted_one_to_the_bit(
    strategy: str, straight: Callable[[str], Path], go: Callable[..., None], tmp_path: Path
) -> None:
    run = stopped_at(straight(strategy), 2, tmp_path / "run")  # before the last layer was ever stepped
    go(run, strategy, 2)
    whole, again = end(straight(strategy)), end(run)
    assert whole.keys() == again.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, again[name])] == []
    measured = [{k: v for k, v in row.items() if k in ("step", "loss", "grad_norm")} for row in rows(run)]
    assert measured == [
        {k: row[k] for k in ("step", "loss", "grad_norm")} for row in rows(straight(strategy))
    ]
    check_samples(run)


def assert_close(run: Path, other: Path) -> None:
    for row, twin in zip(rows(run), rows(other), strict=True):
        assert row["loss"] == pytest.approx(twin["loss"], rel=TOLERANCE), row["step"]
    tensors, twins = end(run), end(other)
    assert tensors.keys() == twins.keys()
    for name, tensor in tensors.items():
        error = (tensor.double() - twins[name].double()).abs().max() / tensor.abs().max().clamp_min(1e-12)
        assert error <= TOLERANCE, f"{name}: {error:.2g}"


def test_zero_2_goes_on_under_fsdp2_and_then_on_one_process(
    straight: Callable[[str], Path], go: Callable[..., None], tmp_path: Path
) -> None:
    run = stopped_at(straight("zero2"), 4, tmp_path / "fsdp2")
    go(run, "fsdp2", 2)
    last = stopped_at(run, 8, tmp_path / "single")
    go(last, "single", 1)
    assert len(check_samples(last)) == 3
    assert_close(last, straight("zero2"))


@pytest.mark.parametrize(
    ("first", "then", "ranks"),
    [("ddp", "zero3", 4), ("fsdp2", "zero1", 1), ("zero3", "fsdp2", 4)],
)
def test_half_and_double_the_ranks_and_other_strategies_follow_the_same_run(
    first: str,
    then: str,
    ranks: int,
    straight: Callable[[str], Path],
    go: Callable[..., None],
    tmp_path: Path,
) -> None:
    run = stopped_at(straight(first), 4, tmp_path / "run")
    go(run, then, ranks)
    check_samples(run)
    assert_close(run, straight(first))


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
def test_one_plain_process_exports_what_any_strategy_saved(
    strategy: str, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    run, out = straight(strategy), tmp_path / "export"
    (ended,) = launch(1, ["-m", "essa_dist", "export", f"run={run}", "format=timm", f"out={out}"])
    assert ended.exit_code == 0, ended.stderr
    merged, teacher, base = load_file(out / "model.safetensors"), load_model(str(run)), base_model(run)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    plain = base_model(run)
    plain.vit.load_state_dict(merged)
    with torch.no_grad():
        torch.testing.assert_close(plain(images).cls, teacher(images).cls, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(plain(images).cls, base(images).cls, rtol=1e-4, atol=1e-4)
