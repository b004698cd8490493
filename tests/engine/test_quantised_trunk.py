"""Runs over a packed trunk: they learn what others learn, and what is saved, exported and resumed is as ever."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from essa_dist import adapt
from essa_dist.adapters import inject_adapter
from essa_dist.backbones import build_backbone
from essa_dist.backbones.quantised import Kind, QuantisedLinear
from essa_dist.backbones.quantised.linear import KINDS
from essa_dist.engine.config import RunConfig
from essa_dist.engine.fast import make_ready
from essa_dist.errors import UsageError
from essa_dist.export.models import load_model
from essa_dist.objectives import DINOv2Objective
from essa_dist.planning.fake import see_step
from essa_dist.runfolder import committed_checkpoints
from essa_dist.settings import load

DEMO = [
    "duration=6",
    "batch_size=8",
    "schedule.warmup=2",
    "device=cpu",
    "threads=1",
    "log_every=1",
    "checkpoint.every=0",
    "canary.every=null",
    "data.workers=0",
    "data.crops.global_size=64",
    "data.crops.local_size=32",
    "data.crops.n_local=1",
    "objective.head.prototypes=64",
    "objective.head.hidden=128",
    "objective.head.standardize_on=32",
]
"""The demo's pretrained trunk and images, in little."""


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def objective_of(config: RunConfig) -> DINOv2Objective:
    backbone = build_backbone(config.backbone, seed=config.seed)
    inject_adapter(backbone, config.adapter, seed=config.seed)
    objective = DINOv2Objective(backbone, config.objective, compute_dtype=torch.bfloat16)
    make_ready(objective, config.engine, torch.bfloat16)
    return objective


def test_a_run_over_a_packed_trunk_learns_what_one_in_bf16_learns(tmp_path: Path, repository: Path) -> None:
    def run(trunk: str) -> list[float]:
        adapt(repository / "configs/demo.yaml", *DEMO, f"engine.trunk={trunk}", f"out={tmp_path / trunk}")
        return losses(tmp_path / trunk)

    expected = run("precision")
    assert expected[-1] < 0.97 * expected[0]  # it has learnt, or nothing were shown
    for kind, bound in (("fp8", 0.02), ("nf4", 0.03)):
        found = run(kind)
        assert found != expected
        assert max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)) < bound, kind


@pytest.mark.parametrize("adapter", ["{kind: apla, rank: 8}", "{kind: lora, dropout: 0}"])
def test_a_checkpoint_has_no_packed_weight_and_the_exported_model_the_one_that_was_read(
    recipe: list[str], tmp_path: Path, adapter: str
) -> None:
    adapt(None, *recipe, f"adapter={adapter}", "engine.trunk=nf4")
    saved = committed_checkpoints(tmp_path / "run")[-1]
    names = {name.rpartition(".")[2] for file in saved.glob("*.safetensors") for name in load_file(file)}
    assert names.isdisjoint({name for kind in KINDS.values() for name in kind.names})
    config = load(RunConfig, None, recipe)
    base = dict(build_backbone(config.backbone, seed=config.seed).named_parameters())
    found = dict(load_model(str(tmp_path / "run")).named_parameters())
    assert found.keys() == base.keys()
    changed = {name for name, p in found.items() if not torch.equal(p, base[name])}
    target = "attn.proj." if "apla" in adapter else "attn.qkv."
    assert {name for name in changed if ".blocks." in name} == {n for n in base if target + "weight" in n} | (
        {n for n in base if target + "bias" in n} if "apla" in adapter else set()
    )


def test_a_resumed_run_ends_as_the_one_that_never_stopped_and_another_kind_is_refused(
    recipe: list[str], tmp_path: Path
) -> None:
    adapt(None, *recipe, "engine.trunk=int8", f"out={tmp_path / 'straight'}")
    last = committed_checkpoints(tmp_path / "straight")[-1]
    right = load_file(last / "student.safetensors")
    last.rename(tmp_path / "away")  # back to step 4
    adapt(None, *recipe, "engine.trunk=int8", f"out={tmp_path / 'straight'}", "resume=true")
    found = load_file(committed_checkpoints(tmp_path / "straight")[-1] / "student.safetensors")
    assert all(torch.equal(t, found[name]) for name, t in right.items())
    with pytest.raises(UsageError, match=r"engine\.trunk was int8, is fp8"):
        adapt(None, *recipe, "engine.trunk=fp8", f"out={tmp_path / 'straight'}", "resume=true")


def test_shared_weights_and_packed_ones_are_refused_together(recipe: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"engine\.trunk=nf4 packs it anew in each process: choose one"):
        adapt(None, *recipe, "engine.trunk=nf4", f"shared_trunk={tmp_path}")


def test_the_slow_path_packs_nothing(recipe: list[str]) -> None:
    slow = objective_of(load(RunConfig, None, [*recipe, "engine.trunk=int8", "engine.fast=false"]))
    assert not [m for m in slow.modules() if isinstance(m, QuantisedLinear)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_the_bytes_that_a_run_has(recipe: list[str], kind: Kind) -> None:
    config = load(RunConfig, None, [*recipe, f"engine.trunk={kind}", "precision=bf16"])
    objective = objective_of(config)
    sets = see_step(config, gpu=True).sets
    own = {
        id(p) for group in (objective.branches.students, objective.branches.teachers) for p in group.values()
    }
    frozen = [*(p for p in objective.parameters() if id(p) not in own), *objective.buffers()]
    assert sum(t.nbytes for t in sets.frozen) == sum(t.nbytes for t in frozen)
    plain = load(RunConfig, None, [*recipe, "precision=bf16"])
    assert sets.frozen_parameters == see_step(plain, gpu=True).sets.frozen_parameters
