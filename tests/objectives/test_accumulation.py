"""An update in micro-batches is the update in one batch: losses, gradients, centres."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.adapters.apla import APLAConfig
from essa_dist.adapters.lora import LoRAConfig
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.backbones.packed import Group, pack
from essa_dist.backbones.vit import Features
from essa_dist.data.batch import Batch
from essa_dist.heads import HeadConfig
from essa_dist.losses.koleo import koleo_loss
from essa_dist.objectives import DINOv2Config, DINOv2Objective
from essa_dist.objectives.accumulation import prepare

B, L, SIDE, TEMP = 8, 2, 48, 0.05
HEAD = HeadConfig(prototypes=16, hidden=8, bottleneck=4, init="kaiming")
OTHER = HeadConfig(prototypes=12, hidden=8, bottleneck=4, init="kaiming")


def objective(adapter: AdapterConfig | None = None, **changes: object) -> DINOv2Objective:
    backbone = build_backbone(BackboneConfig(name="test_vit", weights="random"))
    torch.manual_seed(0)
    for p in backbone.parameters():  # untrained, class tokens are so much alike that KoLeo magnifies rounding
        p.data.add_(torch.randn_like(p) * 0.1)
    inject_adapter(backbone, adapter or APLAConfig(), seed=0)
    config = DINOv2Config.model_validate({"head": HEAD} | changes)
    return DINOv2Objective(backbone, config, compute_dtype=torch.float32).train()


def batch() -> Batch:
    """Different numbers of masked patches everywhere, and none at all in images 2 and 3."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2, B, 9, generator=generator) < 0.7 * torch.rand(2, B, 1, generator=generator)
    masks[:, 2:4] = False
    return Batch(
        global_crops=torch.randn(2, B, 3, SIDE, SIDE, generator=generator),
        local_crops=torch.randn(L, B, 3, 32, 32, generator=generator),
        masks=masks,
        keys=tuple("abcdefgh"),
        step=0,
    )


def update(model: DINOv2Objective, whole: Batch, micro_batches: int) -> dict[str, Tensor]:
    """Mean losses; the gradients are left where they are, and the centres have moved."""
    mean: dict[str, Tensor] = {}
    for part, known in prepare(model, model, whole, micro_batches, teacher_temp=TEMP):
        losses = model(part, teacher_temp=TEMP, known=known)
        (losses["total"] / micro_batches).backward()
        for name, loss in losses.items():
            mean[name] = mean.get(name, 0.0) + loss.detach() / micro_batches
    model.settle(applied=True)
    return mean


def gradients(model: DINOv2Objective) -> dict[str, Tensor]:
    found = {}
    for name, p in model.branches.students.items():
        assert p.grad is not None, name
        found[name] = p.grad
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to 2e-5 of each tensor's largest value (fp32)."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-12)
        assert error <= 2e-5, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("micro_batches", [2, 4])
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("ibot_head", ["shared", OTHER], ids=["shared", "own"])
def test_an_update_in_micro_batches_is_the_update_in_one_batch(
    centering: str, ibot_head: Any, micro_batches: int
) -> None:
    settings = {"centering": centering, "ibot_head": ibot_head, "koleo_weight": 1.0}
    one, several = objective(**settings), objective(**settings)
    for _ in range(2):  # in the second the centres are not zero, and gradients add up
        assert_close(update(several, batch(), micro_batches), update(one, batch(), 1))
    assert_close(gradients(several), gradients(one))
    assert_close(dict(several.named_buffers()), dict(one.named_buffers()))
    if centering == "softmax":
        assert all(targets.center.abs().max() > 0 for targets in (several.dino_targets, several.ibot_targets))


@pytest.mark.parametrize("weight", ["dino_weight", "ibot_weight", "koleo_weight"])
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_it_is_so_without_any_one_of_the_terms(centering: str, weight: str) -> None:
    one, several = (objective(centering=centering, **{weight: 0.0}) for _ in range(2))
    assert_close(update(several, batch(), 2), update(one, batch(), 1))
    assert_close(gradients(several), gradients(one))


def test_koleo_over_micro_batches_is_the_mean_of_theirs() -> None:
    settings = {"dino_weight": 0.0, "ibot_weight": 0.0, "koleo_weight": 1.0}
    alone, whole = (objective(koleo_over=over, **settings) for over in ("micro_batch", "update"))
    found, over_all = update(alone, batch(), 4)["koleo"], update(whole, batch(), 4)["koleo"]
    with torch.no_grad():
        tokens = alone.student_globals(batch(), seed=None).cls.unflatten(0, (2, B))
    expected = sum(koleo_loss(view[i : i + 2]) for view in tokens for i in range(0, B, 2)) / 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found < over_all - 0.1  # fewer neighbours are further away


def test_a_survey_is_made_only_where_micro_batches_must_know_of_each_other() -> None:
    calls: list[Any] = []

    def model(work: Any, **options: Any) -> Any:
        calls.append(work)
        return inner(work, **options)

    for settings, micro_batches, wanted in (
        ({}, 1, 0),
        ({}, 2, 1),
        ({"koleo_weight": 0}, 2, 0),
        ({"koleo_over": "micro_batch"}, 2, 0),
        ({"koleo_weight": 0, "centering": "sinkhorn"}, 1, 0),
        ({"koleo_weight": 0, "centering": "sinkhorn"}, 2, 1),
    ):
        inner = objective(**settings)
        prepare(inner, model, batch(), micro_batches, teacher_temp=TEMP)
        assert len(calls) == wanted, settings
        calls.clear()


@pytest.mark.parametrize("packs", [False, True])
def test_the_student_drops_the_same_in_the_survey_and_behind_it(
    packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = objective(LoRAConfig(dropout=0.5), koleo_weight=1.0)
    if packs:
        pack(model.backbone.vit)
        model.backbone.packs = True
    for name, p in model.branches.students.items():
        if "lora_B" in name:
            p.data.normal_()
    seen: list[Tensor] = []
    plain = Backbone.each

    def noting(self: Backbone, *groups: Group) -> list[Features]:
        found = plain(self, *groups)
        seen.append(found[0].cls.detach())
        return found

    monkeypatch.setattr(Backbone, "each", noting)
    same = replace(
        batch(),
        global_crops=batch().global_crops[:, :1].expand(-1, B, -1, -1, -1),
        masks=batch().masks[:, :1].expand(-1, B, -1),
    )
    update(model, same, 2)
    survey, behind = seen[:2], seen[2:]
    torch.testing.assert_close(survey, behind, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*behind, rtol=1e-2)  # each micro-batch draws its own


def test_an_update_that_is_not_made_leaves_no_trace_in_the_centres() -> None:
    model, twin = objective(), objective()
    bad = batch()
    bad.global_crops[0, 0] = torch.nan
    for part, known in prepare(model, model, bad, 2, teacher_temp=TEMP):
        assert not model(part, teacher_temp=TEMP, known=known)["total"].isfinite()
    model.settle(applied=False)
    assert_close(update(model, batch(), 2), update(twin, batch(), 2))
    assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


def test_a_batch_that_cannot_be_cut_into_equal_parts_is_refused() -> None:
    model = objective()
    with pytest.raises(ValueError, match="8 images can't be cut into 3 equal"):
        prepare(model, model, batch(), 3, teacher_temp=TEMP)
