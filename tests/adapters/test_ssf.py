"""SSF beside the shared contract: where it acts, and that one layer computes what layer, scale and shift did."""

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from timm.layers import LayerNorm, RmsNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.adapters.ssf import SSF, ScaleShift, SSFConfig
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError


def injected(backbone: Backbone) -> Backbone:
    SSF(SSFConfig()).inject(backbone, seed=0)
    generator = torch.Generator().manual_seed(5)
    for p in backbone.parameters():  # stands for training
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape, generator=generator) * 0.3)
    return backbone


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 8), torch.randn(2, 5, 6)),
        (nn.Linear(6, 8, bias=False), torch.randn(2, 5, 6)),
        (nn.Conv2d(3, 8, 4, stride=4), torch.randn(2, 3, 12, 16)),
        (LayerNorm(6), torch.randn(2, 5, 6)),
        (RmsNorm(6), torch.randn(2, 5, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
@torch.no_grad()
def test_a_layer_folded_with_its_scale_and_shift_computes_what_both_did(layer: Any, x: Tensor) -> None:
    plain = layer(x)
    features = layer.weight.shape[0]
    layer.ssf = ScaleShift(layer)
    assert torch.equal(layer(x), plain)
    layer.ssf.scale.copy_(torch.linspace(-2, 3, features))
    shift = torch.zeros(features)
    if layer.ssf.shift is not None:
        layer.ssf.shift.copy_(shift := torch.linspace(5, 1, features))
    axes = (-1, 1, 1) if plain.ndim == 4 else (-1,)
    expected = plain * torch.linspace(-2, 3, features).view(axes) + shift.view(axes)
    torch.testing.assert_close(layer(x), expected)
    layer.ssf.fold_into(layer)
    torch.testing.assert_close(layer(x), expected)
    assert not hasattr(layer, "ssf")


@pytest.mark.parametrize(
    ("vit_class", "family", "scale_only"),
    [
        (VisionTransformer, {}, set()),
        (VisionTransformer, {"qkv_bias": False}, {"attn.qkv"}),
        (VisionTransformer, {"norm_layer": RmsNorm}, {"norm1", "norm2", "norm"}),
        (Eva, {}, {"attn.qkv"}),  # its biases of q and v are the attention's own
        (Eva, {"qkv_fused": False}, {"attn.k_proj"}),
    ],
)
def test_layers_without_a_bias_get_the_scale_only(
    tiny: Any, vit_class: type, family: dict[str, Any], scale_only: set[str]
) -> None:
    backbone = injected(tiny(vit_class, **family))
    found = {
        name.removesuffix(".ssf"): m for name, m in backbone.named_modules() if isinstance(m, ScaleShift)
    }
    without = {name for name, m in found.items() if m.shift is None}
    assert without == {n for n in found if any(n.endswith(f".{end}") for end in scale_only)}
    layers = {
        name
        for name, m in backbone.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d | nn.LayerNorm | RmsNorm)
    }
    assert set(found) == layers


@pytest.mark.parametrize("family", [{}, {"qk_norm": True, "scale_attn_norm": True, "pre_norm": True}])
@torch.no_grad()
def test_merging_a_copy_leaves_the_original_as_it_is(tiny: Any, family: dict[str, Any]) -> None:
    backbone, images = injected(tiny(VisionTransformer, **family)).eval(), torch.randn(3, 3, 16, 16)
    before = backbone(images).patches
    merged = copy.deepcopy(backbone)
    SSF(SSFConfig()).merge(merged)
    torch.testing.assert_close(merged(images).patches, before, rtol=0, atol=1e-5)
    assert torch.equal(backbone(images).patches, before)
    assert {n: type(m) for n, m in merged.named_modules()} == {
        n: type(m) for n, m in tiny(VisionTransformer, **family).named_modules()
    }
    for p in merged.parameters():
        p.zero_()
    assert torch.equal(backbone(images).patches, before)


@pytest.mark.parametrize("kind", ["ssf+apla", "apla+ssf", "ssf+lora", "lora+ssf"])
def test_a_second_adapter_of_the_same_layers_is_refused(tiny: Any, kind: str) -> None:
    # One that composes a layer's weight would not see the scale, and the scale not its change.
    config = TypeAdapter(AdapterConfig).validate_python(
        {
            "kind": "combined",
            "parts": [
                {"kind": part, "rank": 3} if part != "ssf" else {"kind": part} for part in kind.split("+")
            ],
        }
    )
    with pytest.raises(
        UsageError, match=r"two adapters change vit\.blocks\.0\.attn\.(proj|qkv), which is a "
    ):
        inject_adapter(tiny(VisionTransformer), config, seed=0)
