"""What each layer keeps for the backward pass, per block in units of tokens x width, as one reads it off autograd."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from essa_dist.adapters import ADAPTERS, Branches, inject_adapter
from essa_dist.backbones import Backbone
from essa_dist.backbones.saved import by_module, saved_tensors

B, N, C = 2, 17, 48
IMAGES = torch.randn(B, 3, 16, 16, generator=torch.Generator().manual_seed(1))
UNIT = B * N * C * 4.0
SETTINGS: dict[str, dict[str, Any]] = {"lora": {"dropout": 0.0}}


def tiny(adapter: str) -> Backbone:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": C, "depth": 3, "num_heads": 3, "init_values": 0.1}
    vit = VisionTransformer(**size, num_classes=0, global_pool="", dynamic_img_size=True)
    vit.pretrained_cfg = {}
    backbone = Backbone(vit, name="tiny")
    config, _ = ADAPTERS[adapter]
    inject_adapter(backbone, config(**SETTINGS.get(adapter, {})), seed=0)
    Branches(backbone)
    return backbone.train()


def kept(backbone: Backbone) -> dict[str, float]:
    """Units of each layer, to a tenth: a norm's mean and deviation, 2 / C, are left out so."""
    rows = saved_tensors(backbone, lambda: backbone(IMAGES))
    return {path: round(units, 1) for path, units in by_module(rows, unit=UNIT).items()}


def of_block(backbone: Backbone, index: int) -> dict[str, float]:
    prefix = f"vit.blocks.{index}."
    return {path.removeprefix(prefix): n for path, n in kept(backbone).items() if path.startswith(prefix)}


# attn: q, k and v, a view each of one storage, and what comes out, which proj may share.
FROZEN = {"norm1": 1.0, "attn": 4.0, "norm2": 1.0, "mlp.act": 4.0}


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("apla", FROZEN),
        ("bitfit", FROZEN),
        ("lora", FROZEN | {"attn.qkv.lora_A.default.trained": 1.0}),
        ("full", FROZEN | {"attn.qkv": 1.0, "ls1": 1.0, "mlp.fc1": 1.0, "mlp.fc2": 4.0, "ls2": 1.0}),
    ],
)
def test_a_block_keeps_what_its_trained_layers_need_and_no_more(
    adapter: str, expected: dict[str, float]
) -> None:
    found = {path: n for path, n in of_block(tiny(adapter), 2).items() if n >= 0.5}  # LoRA's ranks are less
    assert {path: pytest.approx(n, abs=0.15) for path, n in expected.items()} == found


def test_a_block_keeps_ten_widths_with_apla_and_eighteen_in_full() -> None:
    totals = {adapter: sum(of_block(tiny(adapter), 2).values()) for adapter in ("apla", "full")}
    assert totals == {"apla": pytest.approx(10, abs=0.4), "full": pytest.approx(18, abs=0.5)}


def test_nothing_is_kept_before_the_first_trained_tensor() -> None:
    backbone = tiny("apla")
    assert of_block(backbone, 0) == {"attn.proj": 1.0, "norm2": 1.0, "mlp.act": 4.0}
    assert not any(path.startswith(("vit.patch_embed", "vit.pos")) for path in kept(backbone))


def test_parameters_casts_and_shared_memory_are_told_from_activations() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 7, bias=False), nn.Linear(5, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x).sum() + self.second(x).sum()

    model = Twice()
    model.second.requires_grad_(False)
    Branches(model, compute_dtype=torch.bfloat16)
    model.second.bfloat16()
    x = torch.randn(2, 5, dtype=torch.bfloat16, requires_grad=True)
    rows = [(r.module, r.kind, r.shared, r.nbytes) for r in saved_tensors(model, lambda: model(x))]
    assert sorted(rows) == [
        ("first", "activation", False, 2 * 5 * 2),
        ("first", "cast", False, 5 * 7 * 2),
        ("second", "parameter", False, 0),
    ]
    model.second.requires_grad_(True)
    shared = [r for r in saved_tensors(model, lambda: model(x)) if r.module == "second" and r.shared]
    assert [(r.kind, r.nbytes) for r in shared] == [("activation", 0)]


def test_hooks_are_gone_afterwards_also_when_the_pass_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        saved_tensors(model, lambda: model(torch.ones(2, 4)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
