"""Groups of images in one pass: what a pass for each gives, with gradients, for every adapter; or a reason why not."""

from functools import partial
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from timm.layers.attention import Attention
from timm.layers.mlp import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from essa_dist.adapters import ADAPTERS, AdapterConfig, Branches, inject_adapter
from essa_dist.backbones import Backbone
from essa_dist.backbones.attention import FastAttention, fast_attention
from essa_dist.backbones.packed import Group, Layout, join, pack, sequence_ends, why_not
from essa_dist.backbones.recompute import recompute
from essa_dist.errors import UsageError

SIZE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
DINOV2: dict[str, Any] = {"init_values": 0.1, "reg_tokens": 3, "no_embed_class": True}
SWIGLU: dict[str, Any] = {
    "mlp_layer": SwiGLUPacked,
    "act_layer": nn.SiLU,
    "qk_norm": True,
    "init_values": 0.1,
}
RANDOM: dict[str, Any] = {"drop_path_rate": 0.6, "init_values": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "dropout": 0.0},
    "apla": {"rank": 5},
    "explora": {"rank": 3},
}
PACKED = sorted(set(ADAPTERS) - {"vpt", "frozen"})  # the one can't be, the other has no gradients


def tiny(kind: str = "full", *, packs: bool, vit_class: Any = VisionTransformer, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    vit = vit_class(**SIZE, num_classes=0, global_pool="", dynamic_img_size=True, **changes)
    vit.pretrained_cfg = {}
    rule = "dinov2" if "reg_tokens" in changes else "timm"
    backbone = Backbone(vit, name="tiny", pos_embed=rule)
    settings = TypeAdapter(AdapterConfig).validate_python({"kind": kind} | SETTINGS.get(kind, {}))
    inject_adapter(backbone, settings, seed=0)
    with torch.no_grad():  # behind LoRA's zero there would be nothing to compare
        for p in backbone.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    if packs:
        assert why_not(vit) is None
        pack(vit)
        backbone.packs = True
    return backbone.train()


def groups(seed: int | None = None) -> tuple[Group, Group, Group]:
    """Three sizes, the first with masks; one image has none."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(4, 16, generator=generator) < 0.5
    masks[2] = False
    one, other, third = (torch.randn(b, 3, s, s, generator=generator) for b, s in ((4, 16), (5, 8), (1, 12)))
    return Group(one, masks, seed), Group(other), Group(third)


def step(backbone: Backbone, seed: int | None = None) -> dict[str, Tensor]:
    """Features of each group and gradients of all that is trained."""
    torch.manual_seed(7)
    found: dict[str, Tensor] = {}
    for i, (cls, patches) in enumerate(backbone.each(*groups(seed))):
        found |= {f"cls {i}": cls, f"patches {i}": patches}
    sum((value.float() * torch.linspace(-1, 1, value.shape[-1])).sum() for value in found.values()).backward()  # type: ignore[union-attr]
    grads = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return found | grads


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 2e-5 of each tensor's largest value."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-6)
        assert error <= 2e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("changes", [DINOV2, SWIGLU], ids=["dinov2_reg", "swiglu"])
@pytest.mark.parametrize("kind", PACKED)
def test_features_and_gradients_are_those_of_a_pass_for_each_group(
    kind: str, changes: dict[str, Any]
) -> None:
    assert_equal(step(tiny(kind, packs=True, **changes)), step(tiny(kind, packs=False, **changes)))


def test_a_block_is_entered_once_for_all_groups() -> None:
    for packs, times in ((True, 1), (False, 3)):
        backbone, calls = tiny(packs=packs), list[int]()
        backbone.vit.blocks[1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        step(backbone)
        assert len(calls) == times


@pytest.mark.parametrize("seed", [None, 11])
def test_stochastic_depth_draws_the_numbers_of_a_pass_for_each_group(seed: int | None) -> None:
    expected = step(tiny(packs=False, **RANDOM), seed)
    assert_equal(step(tiny(packs=True, **RANDOM), seed), expected)
    assert not torch.equal(step(tiny(packs=False), seed)["cls 0"], expected["cls 0"])  # it does drop


def test_a_group_with_a_seed_draws_what_it_would_alone() -> None:
    for changes in (RANDOM, RANDOM | {"proj_drop_rate": 0.3}):
        backbone = tiny(packs=True, **changes)
        first, *others = groups(seed=11)
        together, alone = backbone.each(first, *others)[0], backbone.each(first)[0]
        torch.testing.assert_close(together.patches, alone.patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["blocks", "mlp", 2])
def test_recomputed_blocks_give_the_same_gradients_bit_for_bit(what: Any) -> None:
    expected, backbone = step(tiny(packs=True, **RANDOM)), tiny(packs=True, **RANDOM)
    recompute(backbone.vit, what)
    backbone.vit.blocks[0].mlp.register_forward_hook(lambda *_: None)
    found = step(backbone)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_both_branches_go_through_it() -> None:
    found = []
    for packs in (True, False):
        backbone = tiny("apla", packs=packs)
        branches = Branches(backbone)
        for teacher in branches.teachers.values():
            teacher.data.mul_(0.5)
        with branches.teacher():
            teacher_cls = backbone.each(*groups())[1].cls
        found.append(step(backbone) | {"teacher": teacher_cls})
    assert_equal(*found)
    assert not torch.equal(found[0]["teacher"], found[0]["cls 1"])


def test_one_tensor_of_images_is_computed_as_before_bit_for_bit() -> None:
    images = groups()[0].images
    with torch.no_grad():
        assert torch.equal(tiny(packs=True)(images).patches, tiny(packs=False)(images).patches)


def test_auto_leaves_a_cpu_alone() -> None:
    backbone = tiny(packs=True)
    backbone.packs, calls = "auto", list[int]()
    backbone.register_forward_hook(lambda *_: calls.append(1))
    backbone.each(*groups())
    assert len(calls) == 3


def test_an_image_of_odd_size_is_refused_in_any_group() -> None:
    with pytest.raises(UsageError, match="10x8 is not a multiple"):
        tiny(packs=True).each(groups()[0], Group(torch.zeros(1, 3, 10, 8)))


def test_families_and_adapters_that_see_whole_sequences_are_told_apart() -> None:
    eva = partial(Eva, use_rot_pos_emb=True, ref_feat_shape=(4, 4))
    assert why_not(tiny("vpt", packs=False).vit) == "Prompts changes each sequence"
    assert "Eva has a forward pass of its own" in str(why_not(tiny(packs=False, vit_class=eva).vit))
    assert "ResPostBlock" in str(why_not(tiny(packs=False, block_fn=ResPostBlock).vit))


def test_a_layout_takes_apart_what_was_joined() -> None:
    parts = [torch.randn(2, 3, 5), torch.randn(4, 1, 5)]
    apart = Layout(((2, 3), (4, 1))).split(join(parts))
    assert all(torch.equal(a, b) for a, b in zip(apart, parts, strict=True))
    assert sequence_ends(((2, 3), (4, 1)), torch.device("cpu")).tolist() == [0, 3, 6, 7, 8, 9, 10]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cuda_gives_what_a_pass_for_each_group_gives(dtype: torch.dtype) -> None:
    found = []
    for packs in (True, False):
        backbone = tiny(packs=packs, **DINOV2).to("cuda", dtype)
        made = backbone.each(*(Group(g.images.to("cuda", dtype), None) for g in groups()))
        sum(features.patches.float().square().sum() for features in made).backward()  # type: ignore[union-attr]
        found.append([f.cls for f in made] + [p.grad for p in backbone.vit.blocks.parameters()])
    bound = 1e-4 if dtype == torch.float32 else 3e-2
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gated", [False, True])
def test_fast_attention_is_timms(dtype: torch.dtype, gated: bool) -> None:
    torch.manual_seed(0)
    slow: Any = Attention(24, num_heads=3, qkv_bias=True, gated=gated).to(dtype)
    slow.fused_attn = False
    x = torch.randn(2, 5, 24, dtype=dtype)
    results = []
    for kind in (Attention, FastAttention):
        slow.__class__ = kind
        inner = x.clone().requires_grad_()
        output = slow(inner)
        (output.double() * torch.linspace(-1, 1, 24)).sum().backward()
        results.append(
            [output, inner.grad, *(p.grad.clone() for p in slow.parameters() if p.grad is not None)]
        )
        slow.zero_grad()
    bound = 1e-12 if dtype == torch.float64 else 2e-2
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= bound * other.abs().max()


def test_other_attention_is_left_to_timm() -> None:
    vit = tiny(packs=False, vit_class=partial(Eva, use_rot_pos_emb=True, ref_feat_shape=(4, 4))).vit
    fast_attention(vit)
    assert not any(isinstance(module, FastAttention) for module in vit.modules())
