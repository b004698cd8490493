"""LoRA's own promises; the adapter contract is tested in tests/contracts."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from essa_dist.adapters.branches import Branches
from essa_dist.adapters.lora import LoRA, LoRAConfig
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError

Tiny = Callable[..., Backbone]
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
VARIANTS: list[dict[str, Any]] = [
    {},
    {"rslora": True, "targets": ("k", "proj")},
    {"dora": True, "targets": ("qkv", "fc2"), "dropout": 0.0},
    {"init": "pissa"},
    {"init": "pissa", "dora": True, "targets": ("proj",)},
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@pytest.fixture
def vit(tiny: Tiny) -> Backbone:
    return tiny(VisionTransformer, init_values=0.1)


def injected(backbone: Backbone, **settings: Any) -> LoRA:
    adapter = LoRA(LoRAConfig(**({"rank": 3} | settings)))
    adapter.inject(backbone, seed=5)
    return adapter


def kick(backbone: Backbone) -> None:
    """Move everything that is trained."""
    with torch.no_grad():
        for i, p in enumerate(p for p in backbone.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)


def qkv(backbone: Backbone) -> Any:
    return backbone.vit.blocks[1].attn.qkv


def train(backbone: Backbone, steps: int, dtype: torch.dtype = torch.float32) -> None:
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        backbone(IMAGES.to(dtype)).patches.float().square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("alpha", "rslora", "scale"), [(6, False, 6 / 3), (6, True, 6 / math.sqrt(3))])
def test_q_and_v_of_a_fused_layer_each_get_a_product_of_their_own_and_k_gets_none(
    vit: Backbone, alpha: float, rslora: bool, scale: float
) -> None:
    base = qkv(vit)
    injected(vit, alpha=alpha, rslora=rslora)
    kick(vit)
    vit.eval()
    layer, x = qkv(vit), torch.randn(2, 5, 24)
    a_q, a_v = layer.lora_A["default"].weight.chunk(2)
    b_q, b_v = (part.weight for part in layer.lora_B["default"].parts)
    q, k, v = base(x).chunk(3, dim=-1)
    expected = torch.cat([q + scale * (x @ a_q.T) @ b_q.T, k, v + scale * (x @ a_v.T) @ b_v.T], dim=-1)
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer(x).chunk(3, dim=-1)[1], k)


def test_targets_that_overlap_are_changed_once(vit: Backbone) -> None:
    injected(vit, targets=("v", "qkv", "q", "v"))
    assert type(qkv(vit).lora_B["default"]) is nn.Linear  # PEFT's own, over the whole layer
    assert qkv(vit).lora_B["default"].weight.shape == (72, 3)


def test_layers_draw_different_numbers_of_peft_s_distribution(vit: Backbone) -> None:
    injected(vit)
    first, second = (block.attn.qkv.lora_A["default"].weight for block in vit.vit.blocks)
    assert not torch.equal(first, second)
    bound = 1 / math.sqrt(24)  # Kaiming's with a = sqrt(5)
    assert bound * 0.9 < first.abs().max() <= bound


def test_pissa_begins_with_the_largest_singular_values_and_leaves_the_frozen_weight_alone(
    vit: Backbone,
) -> None:
    base = qkv(vit)
    before = base.weight.detach().clone()
    injected(vit, init="pissa", alpha=12)
    layer = qkv(vit)
    assert layer.base_layer is base
    assert torch.equal(base.weight, before)
    vit.eval()
    x = torch.randn(2, 5, 24)
    assert torch.equal(layer(x), base(x))
    torch.testing.assert_close(layer.get_delta_weight("default"), torch.zeros(72, 24))
    a = layer.lora_A["default"].initial.chunk(2)[1]
    b = layer.lora_B["default"].initial_1
    u, s, v = torch.linalg.svd(before[48:])
    torch.testing.assert_close(12 / 3 * b @ a, u[:, :3] @ s[:3].diag() @ v[:3], rtol=1e-4, atol=1e-5)


def test_pissa_loads_where_the_decomposition_came_out_otherwise(tiny: Tiny) -> None:
    trained, other = (tiny(VisionTransformer, init_values=0.1) for _ in range(2))
    for backbone in (trained, other):
        injected(backbone, init="pissa")
    initial = [buffer for name, buffer in other.named_buffers() if "initial" in name]
    assert [b.shape for b in initial] == [(6, 24), (24, 3), (24, 3)] * 2  # A of q and v, and the two B
    for buffer in initial:
        buffer.neg_()
    kick(trained)
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.eval()(IMAGES).cls, trained.eval()(IMAGES).cls)


def test_dora_trains_the_length_of_each_row_apart_from_its_direction(vit: Backbone) -> None:
    base = qkv(vit).weight.detach().clone()
    adapter = injected(vit, dora=True, targets=("qkv",), dropout=0)
    kick(vit)
    lengths = qkv(vit).lora_magnitude_vector["default"].weight.detach().clone()
    adapter.merge(vit)
    torch.testing.assert_close(qkv(vit).weight.norm(dim=1), lengths)
    assert not torch.equal(qkv(vit).weight, base)


def test_dora_on_part_of_a_layer_is_refused_with_the_target_that_works(vit: Backbone) -> None:
    with pytest.raises(UsageError, match=r"parts of vit.blocks.0.attn.qkv: use adapter.targets=\[qkv\]"):
        injected(vit, dora=True)


def test_a_rank_beyond_the_layer_is_refused_with_the_range(vit: Backbone) -> None:
    with pytest.raises(UsageError, match=r"adapter.rank must be in 1..24 for vit.blocks.0.attn.qkv, got 25"):
        injected(vit, rank=25)


@each_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_in_fp32_train_a_computation_in_16_bits(
    vit: Backbone, variant: dict[str, Any], dtype: torch.dtype
) -> None:
    with torch.no_grad():
        base = vit(IMAGES).patches
    injected(vit, **variant)
    branches = Branches(vit, compute_dtype=dtype)
    masters = {id(p) for group in (branches.students, branches.teachers) for p in group.values()}
    for p in vit.parameters():
        if id(p) not in masters:
            p.data = p.data.to(dtype)
    train(vit, 3, dtype)
    assert {p.dtype for p in branches.students.values()} == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in branches.students.values())
    with torch.no_grad(), branches.teacher():  # it was not updated
        out = vit(IMAGES.to(dtype)).patches
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), base, rtol=0.05, atol=0.05)


@each_variant
def test_merging_writes_into_no_tensor_that_another_model_shares(
    vit: Backbone, variant: dict[str, Any]
) -> None:
    twin = vit.over_the_same_parameters()
    before = {name: p.detach().clone() for name, p in vit.named_parameters()}
    adapter = injected(twin, **variant)
    kick(twin)
    adapter.merge(twin)
    assert all(torch.equal(p, before[name]) for name, p in vit.named_parameters())
    assert not torch.equal(twin(IMAGES).cls, vit(IMAGES).cls)


def test_the_student_drops_and_the_teacher_does_not(vit: Backbone) -> None:
    injected(vit, dropout=0.5)
    kick(vit)
    branches = Branches(vit.train())

    def twice() -> tuple[Tensor, Tensor]:
        return vit(IMAGES).cls, vit(IMAGES).cls

    assert not torch.equal(*twice())
    with branches.teacher():
        assert torch.equal(*twice())
