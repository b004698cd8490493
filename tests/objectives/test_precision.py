"""The objective in half precision: what is computed in fp32 all the same, and what a loss scale does to it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from essa_dist.adapters import inject_adapter
from essa_dist.adapters.full import FullConfig
from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.data.batch import Batch
from essa_dist.heads import HeadConfig
from essa_dist.objectives import DINOv2Config, DINOv2Objective
from essa_dist.objectives.accumulation import prepare

B, L, SIDE, TEMP = 6, 2, 48, 0.04
SCALE = 1024.0
"""A loss scale at which gradients of order 1, which those of this tiny model are, fit into fp16."""
HALF = [torch.bfloat16, torch.float16]


def objective(dtype: torch.dtype, **changes: object) -> DINOv2Objective:
    backbone = build_backbone(BackboneConfig(name="test_vit", weights="random"))
    torch.manual_seed(0)
    for p in backbone.parameters():  # untrained, images are told apart by less than fp16 can hold
        p.data.add_(torch.randn_like(p) * 0.1)
    inject_adapter(backbone, FullConfig(), seed=0)
    config = DINOv2Config.model_validate(
        {"head": HeadConfig(prototypes=16, hidden=32, bottleneck=16, init="kaiming")} | changes
    )
    return DINOv2Objective(backbone, config, compute_dtype=dtype).train()


def batch(dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        global_crops=torch.randn(2, B, 3, SIDE, SIDE, generator=generator).to(dtype),
        local_crops=torch.randn(L, B, 3, 32, 32, generator=generator).to(dtype),
        masks=torch.rand(2, B, 9, generator=generator) < 0.4,
        keys=tuple("abcdef"),
        step=0,
    )


def scaled_gradients(model: DINOv2Objective, whole: Batch, micro_batches: int) -> dict[str, Tensor]:
    """Of the loss, through a pass backward at ``SCALE``."""
    for part, known in prepare(model, model, whole, micro_batches, teacher_temp=TEMP):
        losses = model(part, teacher_temp=TEMP, known=known)
        (SCALE * losses["total"] / micro_batches).backward()
    found = {}
    for name, p in model.branches.students.items():
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32, name
        found[name] = p.grad / SCALE
    return found


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("dtype", HALF)
def test_gradients_through_a_loss_scale_are_those_of_fp32(
    dtype: torch.dtype, micro_batches: int, centering: str
) -> None:
    half, exact = (
        scaled_gradients(objective(d, centering=centering, koleo_weight=0), batch(d), micro_batches)
        for d in (dtype, torch.float32)
    )
    for name, gradient in exact.items():
        assert half[name].isfinite().all(), name
        error = (half[name] - gradient).norm() / gradient.norm()
        assert error < (0.02 if dtype == torch.float16 else 0.15), f"{name}: {error:.3f}"


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("dtype", HALF)
def test_koleo_of_images_that_are_the_same_is_finite(dtype: torch.dtype, micro_batches: int) -> None:
    same = batch(dtype)
    same = replace(same, masks=torch.zeros_like(same.masks))
    same.global_crops[:, 1] = same.global_crops[:, 0]  # a pair ...
    same.global_crops[:, 2:5] = same.global_crops[:, 5:]  # ... and four of a kind
    gradients = scaled_gradients(objective(dtype), same, micro_batches)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_heads_compute_in_half_precision_losses_and_centres_in_fp32(
    dtype: torch.dtype, centering: str
) -> None:
    model = objective(dtype, centering=centering)
    seen: set[torch.dtype] = set()
    model.dino_head.register_forward_hook(
        lambda head, args, logits: seen.update({args[0].dtype, logits.dtype})
    )
    targets: list[Any] = []
    model.dino_targets.register_forward_hook(lambda module, args, output: targets.append(output))
    losses = model(batch(dtype), teacher_temp=TEMP)
    model.settle(applied=True)
    assert seen == {dtype}
    assert {t.dtype for t in targets} | {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(targets[0].sum(dim=1), torch.ones(2 * B))
