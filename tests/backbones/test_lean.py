"""What frozen layers keep less of: the forward pass stays what it is, and gradients are exact, or near by a stated bound."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from essa_dist.adapters import ADAPTERS, Branches, inject_adapter
from essa_dist.backbones import Backbone, lean
from essa_dist.backbones.attention import fast_attention
from essa_dist.backbones.lean import (
    E4M3,
    Keep,
    LeanGELU,
    LeanLayerNorm,
    gelu_backward,
    lean_layers,
    pack_derivative,
    unpack_normalised,
)
from essa_dist.backbones.saved import by_module, saved_tensors

B, N, C = 3, 17, 48
IMAGES = torch.randn(B, 3, 16, 16, generator=torch.Generator().manual_seed(1))
GLU = partial(VisionTransformer, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU)
EVA = partial(Eva, use_rot_pos_emb=True, ref_feat_shape=(4, 4), swiglu_mlp=True, scale_mlp=True)


def tiny(
    keep: Keep | None, adapter: str = "apla", vit_class: Any = VisionTransformer, dtype: Any = torch.float32
) -> Backbone:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": C, "depth": 4, "num_heads": 3, "init_values": 0.5}
    vit = vit_class(**size, num_classes=0, global_pool="", dynamic_img_size=True)
    vit.pretrained_cfg = {}
    backbone = Backbone(vit, name="tiny")
    inject_adapter(backbone, ADAPTERS[adapter][0](), seed=0)
    branches = Branches(backbone, compute_dtype=dtype)
    trained = {id(p) for group in (branches.students, branches.teachers) for p in group.values()}
    for parameter in backbone.parameters():
        if id(parameter) not in trained:
            parameter.data = parameter.data.to(dtype)
    fast_attention(vit)
    if keep is not None:
        lean_layers(vit, keep)
    return backbone.train()


def gradients(backbone: Backbone, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    """Class tokens, and the gradient of every trained tensor for a loss in some direction."""
    torch.manual_seed(7)
    direction = torch.randn(C)
    features = backbone(IMAGES.to(dtype))
    (features.patches.float() @ direction).sin().mean().add(
        (features.cls.float() @ direction).square().mean()
    ).backward()
    return features.cls.detach(), {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """Relative error and cosine over all tensors."""
    assert found.keys() == expected.keys()
    ours, theirs = (torch.cat([g.flatten() for g in side.values()]) for side in (found, expected))
    return float((ours - theirs).norm() / theirs.norm()), float(F.cosine_similarity(ours, theirs, dim=0))


def units(backbone: Backbone, index: int, dtype: torch.dtype = torch.float32) -> float:
    """What a block keeps, in units of tokens x width."""
    rows = saved_tensors(backbone, lambda: backbone(IMAGES.to(dtype)))
    kept = by_module(rows, unit=B * N * C * dtype.itemsize)
    return sum(n for path, n in kept.items() if path.startswith(f"vit.blocks.{index}."))


@pytest.mark.parametrize("vit_class", [GLU, EVA], ids=["glu", "eva"])
@pytest.mark.parametrize("adapter", ["apla", "full", "ssf"])
def test_a_gated_mlp_keeps_one_part_less_and_its_gradients_bit_for_bit(vit_class: Any, adapter: str) -> None:
    plain, lean = tiny(None, adapter, vit_class), tiny("exact", adapter, vit_class)
    hidden = plain.vit.blocks[3].mlp.fc2.in_features / C
    assert units(plain, 3) - units(lean, 3) == pytest.approx(hidden, abs=0.01)
    (expected, exact), (found, ours) = gradients(plain), gradients(lean)
    assert torch.equal(found, expected)
    assert ours.keys() == exact.keys()
    assert all(torch.equal(ours[name], gradient) for name, gradient in exact.items())


@pytest.mark.parametrize("adapter", ["apla", "lora", "bitfit", "vpt", "adaptformer"])
def test_in_8_bits_values_are_equal_and_gradients_within_two_hundredths(adapter: str) -> None:
    (expected, exact), (found, ours) = (gradients(tiny(keep, adapter)) for keep in ("exact", "8bit"))
    if adapter != "lora":  # which drops some of its inputs, by numbers that depend on nothing kept
        assert torch.equal(found, expected)
    error, cosine = distance(ours, exact)
    assert 0 < error < 0.02
    assert cosine > 0.9998


def test_in_bf16_8_bits_change_gradients_about_as_much_as_bf16_does() -> None:
    truth = gradients(tiny("exact"))[1]
    bf16, ours = (
        gradients(tiny(keep, dtype=torch.bfloat16), torch.bfloat16)[1] for keep in ("exact", "8bit")
    )
    assert distance(ours, bf16)[0] < 2 * distance(bf16, truth)[0]


def test_in_8_bits_apla_keeps_less_than_two_fifths_of_a_full_block() -> None:
    full, ours = (
        units(tiny(keep, adapter, dtype=torch.bfloat16), 3, torch.bfloat16)
        for keep, adapter in (("exact", "full"), ("8bit", "apla"))
    )
    shares = 3 * N / C  # what attention gives to whom: kept on a CPU, and by no fused kernel
    assert full - shares == pytest.approx(18, abs=0.2)
    assert ours - shares <= 7.2


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1 / 299), (torch.float16, 1 / 200), (torch.bfloat16, 1 / 150)]
)
def test_gelus_derivative_is_off_by_a_step_at_most(
    approximate: str, dtype: torch.dtype, bound: float
) -> None:
    x = torch.linspace(-9, 9, 40_001).to(dtype)
    found = gelu_backward(torch.ones_like(x), pack_derivative(x, approximate)).float()
    exact = x.float().requires_grad_()
    F.gelu(exact, approximate=approximate).sum().backward()
    assert exact.grad is not None
    assert (found - exact.grad).abs().max() < bound
    assert (found - exact.grad).mean().abs() < 2e-4  # and without a bias


def test_eight_bits_are_unpacked_as_torch_does() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3)
    expected, found = codes.float(), unpack_normalised(codes).float()
    sure = expected.isfinite() & (expected.abs() >= 1 / 64)
    assert torch.equal(found[sure], expected[sure])
    small = expected.isfinite() & ~sure
    assert (found - expected)[small].abs().max() <= 1 / 128


def test_a_norm_whose_weight_is_trained_keeps_its_exact_gradients() -> None:
    exact, ours = (gradients(tiny(keep, "ln_tuning"))[1] for keep in ("exact", "8bit"))
    plain = tiny("8bit", "ln_tuning")
    for module in plain.modules():
        if type(module) is LeanGELU:
            module.__class__ = nn.GELU
    alone = gradients(plain)[1]
    assert all(torch.equal(alone[name], gradient) for name, gradient in exact.items())
    assert 0 < distance(ours, exact)[0] < 0.02  # of GELU


def test_the_bias_of_a_norm_with_a_frozen_weight_gets_its_gradient() -> None:
    norm = nn.LayerNorm(C)
    norm.weight.requires_grad_(False)
    twin, x, dy = copy.deepcopy(norm), torch.randn(5, N, C), torch.randn(5, N, C)
    twin.__class__ = LeanLayerNorm
    grads = []
    for layer in (norm, twin):
        inputs = x.clone().requires_grad_()
        layer(inputs).backward(dy)
        assert layer.bias.grad is not None
        grads.append((inputs.grad, layer.bias.grad))
    torch.testing.assert_close(grads[1][1], grads[0][1])
    assert (grads[1][0] - grads[0][0]).norm() < 0.01 * grads[0][0].norm()


@pytest.mark.parametrize("vit_class", [VisionTransformer, GLU, EVA], ids=["plain", "glu", "eva"])
def test_names_copies_and_passes_without_gradients_know_nothing_of_it(vit_class: Any) -> None:
    plain, lean = tiny(None, vit_class=vit_class), tiny("8bit", vit_class=vit_class)
    assert list(lean.state_dict()) == list(plain.state_dict())
    twin = copy.deepcopy(lean)
    with torch.no_grad():
        assert torch.equal(lean(IMAGES).cls, plain(IMAGES).cls)
        for parameter in lean.parameters():
            parameter.zero_()
        assert torch.equal(twin(IMAGES).cls, plain(IMAGES).cls)


@pytest.mark.parametrize(("wrong_by", "right"), [(0, True), (1, False)])
def test_the_trials_of_what_is_compiled_compare_numbers(
    monkeypatch: pytest.MonkeyPatch, wrong_by: int, right: bool
) -> None:
    monkeypatch.setattr(lean, "compiled", lambda function: lambda *args: function(*args).float() + wrong_by)
    assert lean._norm_is_right(torch.device("cpu")) == right
    assert lean._gelu_is_right(torch.device("cpu")) == right


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_kernels_are_fused_and_the_bounds_hold() -> None:
    found = []
    for keep in ("exact", "8bit"):
        backbone = tiny(keep, dtype=torch.bfloat16).cuda()
        backbone(IMAGES.bfloat16().cuda()).patches.float().sin().sum().backward()
        found.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert 0 < distance(found[1], found[0])[0] < 0.05
