"""``engine.pack``: losses and all gradients are those of the slow path, for every adapter; where it can't, it says why."""

import logging
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.backbones.weights import said
from essa_dist.data.batch import Batch
from essa_dist.engine.fast import EngineConfig, make_ready
from essa_dist.engine.watching.suspects import SampleWatch
from essa_dist.heads import HeadConfig
from essa_dist.objectives import DINOv2Config, DINOv2Objective
from essa_dist.objectives.accumulation import prepare

B = 4
ADAPTERS = [
    *({"kind": kind} for kind in ("apla", "bitfit", "full", "adaptformer", "ssf", "vpt")),
    {"kind": "apla", "rank": 3},
    {"kind": "lora", "dropout": 0},
]


def objective(adapter: dict[str, Any], engine: EngineConfig, *, drop_path: float = 0.0) -> DINOv2Objective:
    backbone = build_backbone(BackboneConfig(name="test_vit", weights="random", drop_path=drop_path))
    inject_adapter(backbone, TypeAdapter(AdapterConfig).validate_python(adapter), seed=0)
    torch.manual_seed(0)
    for p in backbone.parameters():  # behind LoRA's zero there would be nothing to compare
        p.data.add_(torch.randn(p.shape) * 0.1)
    config = DINOv2Config(
        head=HeadConfig(prototypes=16, hidden=8, bottleneck=4, init="kaiming"), koleo_weight=1.0
    )
    made = DINOv2Objective(backbone, config, compute_dtype=torch.float32)
    make_ready(made, engine, torch.float32)
    return made.train()


def batch(n_local: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2, B, 9, generator=generator) < 0.5
    masks[:, 1] = False
    return Batch(
        global_crops=torch.randn(2, B, 3, 48, 48, generator=generator),
        local_crops=torch.randn(n_local, B, 3, 32, 32, generator=generator),
        masks=masks,
        keys=tuple("abcd"),
        step=0,
    )


def update(model: DINOv2Objective, whole: Batch, micro_batches: int) -> dict[str, Tensor]:
    """Losses, and gradients of all that is trained."""
    torch.manual_seed(5)
    found: dict[str, Tensor] = {}
    for part, known in prepare(model, model, whole, micro_batches, teacher_temp=0.05):
        losses = model(part, teacher_temp=0.05, known=known)
        losses["total"].backward()
        found = {name: found.get(name, torch.zeros(())) + loss.detach() for name, loss in losses.items()}
    return found | {name: p.grad for name, p in model.branches.students.items() if p.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 2e-4 of each tensor's largest value (fp32); KoLeo magnifies rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-5)
        assert error <= 2e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize("n_local", [0, 3])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: "-".join(map(str, adapter.values())))
def test_losses_and_gradients_are_those_of_the_slow_path(adapter: dict[str, Any], n_local: int) -> None:
    fast, slow = (objective(adapter, EngineConfig(pack=True, fast=fast)) for fast in (True, False))
    assert fast.backbone.packs is (adapter["kind"] != "vpt")
    assert slow.backbone.packs is False
    assert_equal(update(fast, batch(n_local), 1), update(slow, batch(n_local), 1))


@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_micro_batches_with_stochastic_depth_are_those_of_the_slow_path(recompute: Any) -> None:
    engine = EngineConfig(pack=True, recompute=recompute)
    fast = objective({"kind": "full"}, engine, drop_path=0.5)
    slow = objective({"kind": "full"}, EngineConfig(fast=False), drop_path=0.5)
    assert_equal(update(fast, batch(2), 2), update(slow, batch(2), 2))


def test_it_says_once_why_crops_pass_apart(caplog: pytest.LogCaptureFixture) -> None:
    said.clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            objective({"kind": "vpt"}, EngineConfig(pack=True))
    assert (
        caplog.text.count("engine.pack: one pass for each size of crops, since Prompts changes each sequence")
        == 1
    )


def test_packing_enters_the_trunk_once_for_the_student_and_once_for_the_teacher() -> None:
    for pack, passes in ((True, 2), (False, 3), ("auto", 3)):
        model, calls = objective({"kind": "apla"}, EngineConfig(pack=pack)), list[int]()
        model.backbone.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        update(model, batch(2), 1)
        assert len(calls) == passes, pack


@pytest.mark.parametrize("pack", [True, False])
def test_a_sample_that_is_not_finite_is_found_and_spoils_no_other(pack: bool) -> None:
    model = objective({"kind": "apla"}, EngineConfig(pack=pack))
    watch, whole = SampleWatch(model, model.backbone), batch(2)
    whole.local_crops[1, 2, 0, 5, 5] = float("nan")
    model(whole, teacher_temp=0.05)
    assert watch.not_finite() == ["c"]
