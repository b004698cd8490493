"""Features of several blocks: what a loop over blocks by hand gives, with any adapter, and with gradients."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from essa_dist.adapters import AdapterConfig, Branches, inject_adapter
from essa_dist.backbones import Backbone
from essa_dist.backbones.layers import Layers, at_depths, layer_features
from essa_dist.backbones.recompute import recompute_blocks
from essa_dist.errors import UsageError
from tests.contracts.test_adapters import FAMILIES

B, DEPTH, WIDTH = 2, 4, 24
IMAGES = torch.randn(B, 3, 12, 20, generator=torch.Generator().manual_seed(1))
GRID = (3, 5)
ADAPTERS = [
    {"kind": "frozen"},
    {"kind": "full"},
    {"kind": "lora", "rank": 3, "dropout": 0.0},
    {"kind": "vpt", "tokens": 5},
    {"kind": "vpt", "tokens": 3, "deep": False},
    {"kind": "adaptformer", "dim": 5, "scale": "learned"},
    {"kind": "ssf"},
    {"kind": "ln_tuning"},
    {"kind": "apla+bitfit", "rank": 3},
]
each_family = pytest.mark.parametrize("family", FAMILIES)
each_adapter = pytest.mark.parametrize("case", ADAPTERS, ids=lambda c: c["kind"] + str(c.get("deep", "")))


def tiny(family: str = "dinov2_reg", adapter: dict[str, Any] | None = None) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2}
        vit: Any = FAMILIES[family](**size, num_classes=0, global_pool="", dynamic_img_size=True)
        vit.pretrained_cfg = {}
        for p in vit.parameters():
            p.data.add_(torch.randn_like(p) * 0.05)
        backbone = Backbone(vit, name=family)
        if adapter is not None:
            config: Any = TypeAdapter(AdapterConfig).validate_python(adapter)
            inject_adapter(backbone, config, seed=3)
            for p in backbone.parameters():  # what starts at zero must show
                if p.requires_grad:
                    p.data.add_(torch.randn_like(p) * 0.05)
    return backbone


def recorded(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Every token that leaves each block, of a loop over the blocks by hand."""
    seen: list[Tensor] = []
    vit = backbone.vit
    x = vit._pos_embed(vit.patch_embed(images))
    x, rope = x if isinstance(x, tuple) else (x, None)
    x = vit.norm_pre(x)
    for i, block in enumerate(vit.blocks):
        own = {} if rope is None else {"rope": rope[i] if getattr(vit, "rope_mixed", False) else rope}
        x = block(x, **own)
        seen.append(x)
    return seen


@each_family
@torch.no_grad()
def test_they_are_timms_own_intermediates(family: str) -> None:
    backbone = tiny(family).eval()
    for norm in (True, False):
        found = layer_features(backbone, IMAGES, (0, 2, -1), norm=norm)
        expected = backbone.vit.forward_intermediates(
            IMAGES, indices=[0, 2, 3], norm=norm, output_fmt="NLC", intermediates_only=True
        )
        assert found.grid == GRID
        assert all(torch.equal(a, b) for a, b in zip(found.patches, expected, strict=True))


@each_adapter
@pytest.mark.parametrize("family", ["augreg", "dinov2_reg", "dinov3"])
@torch.no_grad()
def test_no_adapter_leaks_a_token_or_hides_from_them(family: str, case: dict[str, Any]) -> None:
    backbone = tiny(family, case).eval()
    found = layer_features(backbone, IMAGES, range(DEPTH))
    tokens = recorded(backbone, IMAGES)
    behind = [backbone.num_prefix_tokens] * DEPTH
    if case.get("deep") is False:  # its prompts walk through all blocks but leave behind the last
        behind = [n + case["tokens"] for n in behind[:-1]] + behind[-1:]
    for x_BNC, whole, n in zip(found.patches, tokens, behind, strict=True):
        assert x_BNC.shape == (B, 15, WIDTH)
        assert whole.shape[1] == n + 15
        torch.testing.assert_close(x_BNC, backbone.vit.norm(whole[:, n:]))
    assert torch.equal(found.patches[-1], backbone(IMAGES).patches)


@torch.no_grad()
def test_blocks_come_in_the_order_that_was_asked_for_also_twice() -> None:
    backbone = tiny().eval()
    every = layer_features(backbone, IMAGES, range(DEPTH)).patches
    found = layer_features(backbone, IMAGES, (-1, 1, 1, 0)).patches
    assert all(torch.equal(a, every[i]) for a, i in zip(found, (3, 1, 1, 0), strict=True))


@torch.no_grad()
def test_maps_have_each_patch_in_its_place() -> None:
    x_BNC = torch.arange(B * 15 * 2.0).view(B, 15, 2)
    (found,) = Layers((x_BNC,), GRID).maps()
    assert found.shape == (B, 2, *GRID)
    assert torch.equal(found[1, :, 2, 3], x_BNC[1, 2 * 5 + 3])


@each_adapter
def test_gradients_reach_every_trained_tensor_also_when_recomputed(case: dict[str, Any]) -> None:
    gradients = []
    for recompute in (False, True):
        backbone = tiny(adapter=case).train()
        backbone.mask_token.requires_grad_(False)  # no mask, no gradient
        if recompute:
            recompute_blocks(backbone.vit)
        branches = Branches(backbone)
        layers = layer_features(backbone, IMAGES, (1, -1))
        if branches.students:
            (layers.patches[0].square().sum() + layers.patches[1].exp().sum()).backward()
        gradients.append({name: p.grad for name, p in branches.students.items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
def test_each_branch_gives_its_own() -> None:
    backbone = tiny(adapter={"kind": "ln_tuning"})
    branches = Branches(backbone)
    for teacher in branches.teachers.values():
        teacher.zero_()
    student = layer_features(backbone, IMAGES, (0,)).patches[0]
    with branches.teacher():
        assert not layer_features(backbone, IMAGES, (0,)).patches[0].any()
    assert student.any()


def test_an_unknown_block_is_refused_and_no_hook_stays_behind() -> None:
    backbone = tiny()
    with pytest.raises(UsageError, match=r"block 4: dinov2_reg has blocks -4\.\.3"):
        layer_features(backbone, IMAGES, (0, 4))
    with pytest.raises(UsageError, match="13x20 is not a multiple"):
        layer_features(backbone, torch.zeros(1, 3, 13, 20), (0,))
    layer_features(backbone, IMAGES, (0, 1))
    assert not any(block._forward_hooks for block in backbone.vit.blocks)


def test_depths_are_rounded_to_blocks_that_exist() -> None:
    assert at_depths(24, (10 / 24, 15 / 24, 20 / 24, 1)) == (9, 14, 19, 23)  # SETR's for ViT-L
    assert at_depths(12, (0.25, 0.5, 0.75, 1)) == (2, 5, 8, 11)  # DPT's for ViT-B
    assert at_depths(1, (0.25, 0.5, 0.75, 1)) == (0, 0, 0, 0)
