"""Cross-entropies in slices, one pass of each head: the same losses, gradients, centres and diagnostics as in the plain form."""

from typing import Any

import pytest
import torch
from torch import Tensor

import essa_dist.losses.prototypes as prototypes
import essa_dist.objectives.cross_entropies as sliced_form
from essa_dist.adapters import inject_adapter
from essa_dist.adapters.apla import APLAConfig
from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.data.batch import Batch
from essa_dist.heads import HeadConfig
from essa_dist.objectives import DINOv2Config, DINOv2Objective
from essa_dist.objectives.accumulation import prepare

B, L, SIDE, TEMP = 4, 3, 48, 0.05
HEAD = HeadConfig(prototypes=37, hidden=8, bottleneck=6, init="kaiming")
OTHER = HeadConfig(prototypes=23, hidden=8, bottleneck=5, init="kaiming")


@pytest.fixture(autouse=True)
def many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough that every boundary falls inside a group of rows somewhere."""
    monkeypatch.setattr(prototypes, "BLOCK", 11)
    monkeypatch.setattr(prototypes, "PIECE", 5)
    monkeypatch.setattr(sliced_form, "PIECE", 5)
    monkeypatch.setattr(prototypes, "SLICE_CPU", 2 * 37)


def objective(*, sliced: bool, dtype: torch.dtype = torch.float32, **changes: object) -> DINOv2Objective:
    backbone = build_backbone(BackboneConfig(name="test_vit", weights="random"))
    torch.manual_seed(0)
    for p in backbone.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    inject_adapter(backbone, APLAConfig(), seed=0)
    config = DINOv2Config.model_validate({"head": HEAD} | changes)
    model = DINOv2Objective(backbone, config, compute_dtype=dtype).train()
    for p in model.branches.teachers.values():  # the teacher isn't the student
        p.data.add_(torch.randn_like(p) * 0.1)
    students = {id(p) for p in model.branches.students.values()} | {
        id(p) for p in model.branches.teachers.values()
    }
    for p in model.parameters():
        if id(p) not in students:
            p.data = p.data.to(dtype)
    model.sliced = sliced
    return model


def batch(
    images: int = B, *, masked: float = 0.6, local: int = L, dtype: torch.dtype = torch.float32
) -> Batch:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2, images, 9, generator=generator) < masked
    masks[:, images // 2] = False
    return Batch(
        global_crops=torch.randn(2, images, 3, SIDE, SIDE, generator=generator).to(dtype),
        local_crops=torch.randn(local, images, 3, 32, 32, generator=generator).to(dtype),
        masks=masks,
        keys=tuple(map(str, range(images))),
        step=0,
    )


def update(model: DINOv2Objective, whole: Batch, *, parts: int = 1, scale: float = 1.0) -> dict[str, Tensor]:
    """Mean losses with diagnostics, gradients and centres of one update."""
    found: dict[str, Tensor] = {}
    for part, known in prepare(model, model, whole, parts, teacher_temp=TEMP):
        losses = model(part, teacher_temp=TEMP, known=known, diagnose=True)
        (scale * losses["total"] / parts).backward()
        for name, loss in losses.items():
            found[name] = found.get(name, torch.zeros(())) + loss.detach() / parts
    model.settle(applied=True)
    for name, p in model.branches.students.items():
        assert p.grad is not None, name
        found[f"gradient of {name}"] = p.grad / scale
    return found | {f"buffer {name}": b for name, b in model.named_buffers() if "targets" in name}


def compare(whole: Batch, *, parts: int = 1, **changes: object) -> None:
    plain, sliced = (update(objective(sliced=s, **changes), whole, parts=parts) for s in (False, True))
    assert plain.keys() == sliced.keys()
    for name in plain:
        size = plain[name].abs().max().item()
        torch.testing.assert_close(
            sliced[name], plain[name], rtol=2e-5, atol=2e-6 * max(size, 1e-3), msg=name
        )


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("ibot_head", ["shared", OTHER], ids=["shared", "own"])
@pytest.mark.parametrize("local", [0, L])
def test_losses_gradients_centres_and_diagnostics_are_those_of_the_plain_form(
    parts: int, centering: str, ibot_head: object, local: int
) -> None:
    compare(batch(local=local), parts=parts, centering=centering, ibot_head=ibot_head)


@pytest.mark.parametrize(
    "changes",
    [
        {"dino_weight": 0.0},
        {"dino_weight": 0.0, "ibot_head": OTHER},
        {"ibot_weight": 0.0},
        {"dino_weight": 3.0},
    ],
    ids=str,
)
def test_weights_count_as_in_the_plain_form(changes: dict[str, Any]) -> None:
    compare(batch(), **changes)


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("ibot_head", ["shared", OTHER], ids=["shared", "own"])
def test_a_batch_without_a_masked_patch_is_the_plain_forms(centering: str, ibot_head: object) -> None:
    compare(batch(masked=0.0), centering=centering, ibot_head=ibot_head)


def test_one_image_is_enough() -> None:
    compare(batch(1), koleo_weight=0.0)


def test_a_loss_scale_leaves_the_gradients_as_they_are() -> None:
    one, scaled = (update(objective(sliced=True), batch(), scale=s) for s in (1.0, 2.0**16))
    torch.testing.assert_close(one, scaled)
