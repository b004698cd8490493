"""The objective beside its golden values: who is masked, who is random, what adds up."""

import pytest
import torch
from torch import Tensor

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.adapters.apla import APLAConfig
from essa_dist.adapters.full import FullConfig
from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.data.batch import Batch
from essa_dist.heads import HeadConfig
from essa_dist.objectives import DINOv2Config, DINOv2Objective, Embed

B, L, SIDE = 3, 2, 48
HEAD = HeadConfig(prototypes=16, hidden=8, bottleneck=4)


def objective(
    drop_path: float = 0.0, adapter: AdapterConfig | None = None, **changes: object
) -> DINOv2Objective:
    backbone = build_backbone(BackboneConfig(name="test_vit", weights="random", drop_path=drop_path))
    inject_adapter(backbone, adapter or APLAConfig(), seed=0)
    torch.manual_seed(0)
    config = DINOv2Config.model_validate({"head": HEAD} | changes)
    return DINOv2Objective(backbone, config, compute_dtype=torch.float32).train()


def batch(masked: float = 0.5) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        global_crops=torch.randn(2, B, 3, SIDE, SIDE, generator=generator),
        local_crops=torch.randn(L, B, 3, 32, 32, generator=generator),
        masks=torch.rand(2, B, 9, generator=generator) < masked,
        keys=("a", "b", "c"),
        step=0,
    )


def test_total_is_the_sum_of_the_terms_and_weights_scale_them() -> None:
    losses = objective()(batch(), teacher_temp=0.05)
    terms = [losses[name] for name in ("dino_global", "dino_local", "ibot", "koleo")]
    torch.testing.assert_close(losses["total"], torch.stack(terms).sum())
    doubled = objective(ibot_weight=2.0, dino_weight=3.0)(batch(), teacher_temp=0.05)
    torch.testing.assert_close(doubled["ibot"], 2 * losses["ibot"])
    torch.testing.assert_close(doubled["dino_local"], 3 * losses["dino_local"])


def test_the_teacher_draws_no_stochastic_depth() -> None:
    model = objective(drop_path=0.9)
    images = batch().global_crops.flatten(0, 1)
    with model.branches.teacher():
        once, again = model.backbone(images).cls, model.backbone(images).cls
    assert torch.equal(once, again)
    assert not torch.equal(model.backbone(images).cls, model.backbone(images).cls)  # the student does


def test_features_through_the_root_are_those_of_the_branch_without_masks_dropout_or_gradients() -> None:
    model = objective(drop_path=0.9)
    for p in model.branches.students.values():
        p.data.add_(0.1)
    images = batch().global_crops.flatten(0, 1)
    teacher, student = model(Embed(images)), model(Embed(images, branch="student"))
    assert model.training
    assert not teacher.cls.requires_grad
    assert not student.patches.requires_grad
    with torch.no_grad():
        expected = model.eval().backbone(images)
        assert torch.equal(student.cls, expected.cls)
        assert torch.equal(student.patches, expected.patches)
        model.branches.reset_teacher()
        assert not torch.equal(teacher.cls, student.cls)
        assert torch.equal(model(Embed(images)).cls, expected.cls)


def test_at_ibot_weight_zero_nothing_is_masked() -> None:
    masked, bare = (objective(ibot_weight=0)(batch(share), teacher_temp=0.05) for share in (1.0, 0.0))
    torch.testing.assert_close(masked, bare)


def test_a_batch_without_a_mask_has_an_ibot_loss_of_zero_and_trains() -> None:
    model = objective(ibot_head=HEAD)
    losses = model(batch(0.0), teacher_temp=0.05)
    losses["total"].backward()
    assert losses["ibot"].item() == 0
    assert all(
        p.grad is not None for p in model.branches.students.values()
    )  # also in the unused head: DDP waits


@pytest.mark.parametrize("dino", [0.0, 1.0])
@pytest.mark.parametrize("ibot", [0.0, 1.0])
@pytest.mark.parametrize("ibot_head", ["shared", HEAD], ids=["shared", "own"])
def test_whatever_the_weights_every_trained_tensor_has_a_gradient(
    dino: float, ibot: float, ibot_head: object
) -> None:
    model = objective(adapter=FullConfig(), dino_weight=dino, ibot_weight=ibot, ibot_head=ibot_head)
    model(batch(), teacher_temp=0.05)["total"].backward()
    students = model.branches.students
    assert [name for name, p in students.items() if p.grad is None or not p.grad.any()] == []
    assert ("backbone.mask_token" in students) == (ibot > 0)
    assert any(name.startswith("dino_head") for name in students) == bool(
        dino or (ibot and ibot_head == "shared")
    )


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_without_local_crops_only_the_global_pairs_count(centering: str) -> None:
    whole = batch()
    alone = Batch(whole.global_crops, whole.local_crops[:0], whole.masks, keys=whole.keys, step=0)
    with_local = objective(centering=centering)(whole, teacher_temp=0.05)
    without = objective(centering=centering)(alone, teacher_temp=0.05)
    assert "dino_local" not in without
    torch.testing.assert_close(without["dino_global"], (1 + L) * with_local["dino_global"])


def test_no_gradient_reaches_the_teacher_or_the_targets() -> None:
    model = objective()
    model(batch(), teacher_temp=0.05, diagnose=True)["total"].backward()
    assert all(p.grad is None for p in model.branches.teachers.values())


def test_diagnostics_are_there_when_asked_and_add_nothing_to_the_total() -> None:
    plain: dict[str, Tensor] = objective()(batch(), teacher_temp=0.05)
    diagnosed = objective()(batch(), teacher_temp=0.05, diagnose=True)
    assert diagnosed.keys() - plain.keys() == {"teacher_entropy", "prototype_entropy", "rankme"}
    assert torch.equal(plain["total"], diagnosed["total"])
