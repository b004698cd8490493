"""The fast form of LoRA's layers computes what PEFT's own forward does."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from essa_dist.adapters import inject_adapter
from essa_dist.adapters.explora import ExPLoRAConfig
from essa_dist.adapters.lean_lora import LeanLoRALinear, keep, lean_lora
from essa_dist.adapters.lora import LoRAConfig, quicken_lora
from essa_dist.backbones import Backbone
from essa_dist.engine.fast import EngineConfig, make_ready
from essa_dist.objectives import DINOv2Config, DINOv2Objective

Tiny = Callable[..., Backbone]
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
FUSED: list[dict[str, Any]] = [
    {},
    {"targets": ("k",), "rslora": True},
    {"targets": ("qkv", "proj", "fc1", "fc2")},
    {"targets": ("q", "k", "v", "fc2"), "alpha": 5},
]


def kicked(backbone: Backbone) -> Backbone:
    """Everything that is trained, moved."""
    with torch.no_grad():
        for i, p in enumerate(p for p in backbone.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return backbone


def layers(backbone: Backbone) -> list[Any]:
    return [module for module in backbone.modules() if hasattr(module, "lora_A")]


def learned(backbone: Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    """Patch features, and the gradient of each trained tensor; the images' too, so that every layer passes one on."""
    backbone.zero_grad()
    images = IMAGES.clone().requires_grad_()
    features = backbone(images).patches
    (features.square().sum() / features.numel()).backward()
    found = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    assert images.grad is not None
    return features.detach(), found | {"images": images.grad}


@pytest.mark.parametrize("family", [VisionTransformer, Eva])
@pytest.mark.parametrize("settings", FUSED, ids=str)
def test_features_and_gradients_are_those_of_pefts_forward(
    tiny: Tiny, family: Any, settings: dict[str, Any]
) -> None:
    slow = tiny(family, **({"init_values": 0.1} if family is VisionTransformer else {}))
    inject_adapter(slow, LoRAConfig(rank=3, dropout=0, **settings), seed=5)
    fast = copy.deepcopy(kicked(slow).train())
    quicken_lora(fast.vit)
    assert {type(layer) for layer in layers(fast)} == {LeanLoRALinear}
    torch.testing.assert_close(learned(fast), learned(slow))


def test_what_dropout_leaves_counts_as_much_more(tiny: Tiny) -> None:
    backbone = tiny(VisionTransformer)
    inject_adapter(backbone, LoRAConfig(rank=3, alpha=6, dropout=0.3, targets=("q", "v")), seed=5)
    quicken_lora(kicked(backbone).train().vit)
    layer, x = layers(backbone)[0], torch.randn(2, 5, 24, requires_grad=True)
    torch.manual_seed(7)
    found = layer(x)
    torch.manual_seed(7)
    kept, rate = keep(x, 0.3)
    change = (x * kept / rate) @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    expected = layer.base_layer(x) + 2 * change
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, x, slope), torch.autograd.grad(expected, x, slope))
    torch.testing.assert_close(layer.eval()(x), layer.base_layer(x) + 2 * change_of(layer, x))


def change_of(layer: Any, x: Tensor) -> Tensor:
    thin: Tensor = x @ layer.lora_A["default"].weight.T
    change: Tensor = thin @ layer.lora_B["default"].weight.T
    return change


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_number_is_dropped_at_the_rate_wherever_it_stands(p: float) -> None:
    torch.manual_seed(0)
    kept, rate = keep(torch.empty(1000, 203, dtype=torch.bfloat16), p)
    assert rate == pytest.approx(1 - p, abs=1e-5)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    deviation = (p * (1 - p) / 1000) ** 0.5
    by_place = kept.float().mean(0)
    assert (by_place - rate).abs().max() < 5 * deviation
    # Neighbours come from one word of the generator, and know nothing of each other.
    together = (kept[:, 1:] * kept[:, :-1]).float().mean(0)
    assert (together - rate**2).abs().max() < 5 * (rate**2 * (1 - rate**2) / 1000) ** 0.5


@pytest.mark.parametrize("settings", [{"dora": True, "targets": ("proj",)}, {"init": "pissa"}], ids=str)
def test_dora_and_pissa_stay_as_peft_has_them(tiny: Tiny, settings: dict[str, Any]) -> None:
    backbone = tiny(VisionTransformer)
    inject_adapter(backbone, LoRAConfig(rank=3, **settings), seed=5)
    lean_lora(backbone.vit)
    assert all(type(layer) is not LeanLoRALinear for layer in layers(backbone))


def test_a_merged_layer_no_longer_adds_its_change(tiny: Tiny) -> None:
    backbone = tiny(VisionTransformer)
    inject_adapter(backbone, LoRAConfig(rank=3), seed=5)
    quicken_lora(kicked(backbone).eval().vit)
    layer, x = layers(backbone)[0], torch.randn(2, 5, 24)
    before = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("kind", ["lora", "explora"])
def test_the_fast_path_takes_it_and_the_slow_one_does_not(tiny: Tiny, kind: str) -> None:
    for fast in (True, False):
        backbone = tiny(VisionTransformer)
        config: Any = ExPLoRAConfig(rank=3) if kind == "explora" else LoRAConfig(rank=3)
        inject_adapter(backbone, config, seed=5)
        head = {"prototypes": 8, "hidden": 8, "bottleneck": 4}
        objective = DINOv2Objective(backbone, DINOv2Config(head=head), compute_dtype=torch.float32)
        make_ready(objective, EngineConfig(fast=fast), torch.float32)
        assert {type(layer) is LeanLoRALinear for layer in layers(backbone)} == {fast}
