"""The contract of every adapter: a no-op before training, only its tensors move, one trunk, merge keeps features."""

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from essa_dist.adapters import ADAPTERS, AdapterConfig, Branches, build_adapter
from essa_dist.adapters.branches import SUFFIX
from essa_dist.adapters.full import Full
from essa_dist.backbones import Backbone

CASES: list[dict[str, Any]] = [
    {"kind": "full"},
    {"kind": "apla"},
    {"kind": "apla", "rank": 1},
    {"kind": "apla", "rank": 7},
    {"kind": "apla", "rank": 24},
    {"kind": "apla", "rank": 5, "targets": ["attn.qkv", "mlp.fc2"]},
]
B, SIDE, PATCH, WIDTH = 3, 16, 4, 24


def tiny() -> Backbone:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=2,
        num_heads=2,
        init_values=0.1,
        num_classes=0,
        global_pool="",
        dynamic_img_size=True,
    )
    vit.pretrained_cfg = {}
    for p in vit.parameters():  # biases start at zero: an adapter that loses one must not go unseen
        p.data.add_(torch.randn_like(p) * 0.05)
    return Backbone(vit, name="tiny")


def adapted(case: dict[str, Any]) -> tuple[Backbone, Any]:
    backbone = tiny()
    adapter = build_adapter(TypeAdapter(AdapterConfig).validate_python(case))
    adapter.inject(backbone, seed=3)
    return backbone, adapter


def features(backbone: Backbone, images: Tensor) -> Tensor:
    out = backbone(images)
    return torch.cat([out.cls[:, None], out.patches], dim=1)


def train(backbone: Backbone, branches: Branches, images: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(list(branches.students.values()), lr=1e-2)
    masks = torch.rand(B, (SIDE // PATCH) ** 2) < 0.5
    for _ in range(steps):
        optimizer.zero_grad()
        out = backbone(images, masks)
        (out.cls.square().sum() + out.patches.square().sum()).backward()
        optimizer.step()


@pytest.fixture(params=CASES, ids=lambda case: "-".join(str(v) for v in case.values()))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(B, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_every_adapter_has_a_case() -> None:
    assert {case["kind"] for case in CASES} == set(ADAPTERS)


@torch.no_grad()
def test_before_training_both_branches_are_the_base_model_bit_for_bit(
    case: dict[str, Any], images: Tensor
) -> None:
    base = features(tiny(), images)
    backbone, _ = adapted(case)
    branches = Branches(backbone)
    assert torch.equal(features(backbone, images), base)
    with branches.teacher():
        assert torch.equal(features(backbone, images), base)


def test_only_trained_tensors_move_and_each_gets_a_gradient(case: dict[str, Any], images: Tensor) -> None:
    backbone, _ = adapted(case)
    branches = Branches(backbone)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    train(backbone, branches, images, steps=1)
    for name, p in backbone.named_parameters():
        if name in branches.students:
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().sum() > 0, name
        else:
            assert p.grad is None, name
    train(backbone, branches, images, steps=4)
    for name, p in backbone.named_parameters():
        assert torch.equal(p, before[name]) == (name not in branches.students), name


def test_gradients_are_the_same_under_activation_checkpointing(case: dict[str, Any], images: Tensor) -> None:
    grads = []
    for checkpointing in (False, True):
        backbone, _ = adapted(case)
        backbone.vit.set_grad_checkpointing(checkpointing)
        branches = Branches(backbone)
        backbone.train()
        with branches.teacher():  # a teacher pass in between must not leak into the recomputation
            backbone(images)
        out = features(backbone, images)
        with branches.teacher():
            backbone(images)
        out.square().sum().backward()
        grads.append({name: p.grad for name, p in branches.students.items() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_the_teacher_is_the_closed_form_ema(case: dict[str, Any], images: Tensor) -> None:
    backbone, _ = adapted(case)
    branches = Branches(backbone)
    expected = {name: p.detach().double() for name, p in branches.students.items()}
    for momentum in (0.9, 0.5, 0.99):
        train(backbone, branches, images, steps=1)
        branches.update_teacher(momentum)
        for name, student in branches.students.items():
            expected[name] = momentum * expected[name] + (1 - momentum) * student.detach().double()
    for name, teacher in branches.teachers.items():
        torch.testing.assert_close(teacher.double(), expected[name], rtol=1e-6, atol=1e-7)
    with branches.teacher():
        seen = features(backbone, images)
    plain = tiny()
    build_adapter(TypeAdapter(AdapterConfig).validate_python(case)).inject(plain, seed=3)
    plain.load_state_dict(
        {k: v for k, v in backbone.state_dict().items() if not k.endswith(SUFFIX)}
        | {k.removesuffix(SUFFIX): v for k, v in backbone.state_dict().items() if k.endswith(SUFFIX)}
    )
    torch.testing.assert_close(seen, features(plain, images))


def test_branches_share_every_frozen_tensor_by_storage_and_by_bytes(case: dict[str, Any]) -> None:
    base_bytes = sum(p.numel() * p.element_size() for p in tiny().parameters())
    backbone, _ = adapted(case)
    extra_rows = sum(p.numel() * p.element_size() for p in backbone.parameters()) - base_bytes
    branches = Branches(backbone)
    student = {n: p.data_ptr() for n, p in backbone.named_parameters() if not n.endswith(SUFFIX)}
    seen: dict[str, int] = {}
    for name, module in backbone.named_modules():
        module.register_forward_pre_hook(
            lambda m, a, name=name: seen.update(
                {f"{name}.{n}".lstrip("."): p.data_ptr() for n, p in m._parameters.items() if p is not None}
            )
        )
    with branches.teacher():
        backbone(torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, (SIDE // PATCH) ** 2, dtype=torch.bool))
    for name, pointer in student.items():
        if name in seen:  # an APLA layer composes its frozen base without entering it
            assert (seen[name] == pointer) == (name not in branches.students), name
    trained_bytes = sum(p.numel() * p.element_size() for p in branches.students.values())
    total = sum(p.numel() * p.element_size() for p in backbone.parameters())
    assert total == base_bytes + extra_rows + trained_bytes  # the teacher costs its trained tensors, no more


def test_merge_keeps_the_features_and_restores_the_plain_module_tree(
    case: dict[str, Any], images: Tensor
) -> None:
    backbone, adapter = adapted(case)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    features(backbone, images).square().sum().backward()
    optimizer.step()
    trained = features(backbone, images).detach()
    adapter.merge(backbone)
    torch.testing.assert_close(features(backbone, images), trained, rtol=0, atol=1e-5)
    assert not torch.allclose(trained, features(tiny(), images), atol=1e-3)
    assert {n: type(m) for n, m in backbone.named_modules()} == {
        n: type(m) for n, m in tiny().named_modules()
    }
    assert not any(p.requires_grad for p in backbone.parameters())


def test_random_choices_come_from_the_seed_not_from_the_global_rng(case: dict[str, Any]) -> None:
    states = []
    for global_seed in (0, 1):
        backbone = tiny()
        torch.manual_seed(global_seed)
        build_adapter(TypeAdapter(AdapterConfig).validate_python(case)).inject(backbone, seed=3)
        states.append(backbone.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_deep_copy_is_independent(case: dict[str, Any], images: Tensor) -> None:
    if ADAPTERS[case["kind"]] is Full:
        return
    backbone, _ = adapted(case)
    twin = copy.deepcopy(backbone)
    for p in twin.parameters():
        p.data.zero_()
    assert features(backbone, images).abs().sum() > 0
