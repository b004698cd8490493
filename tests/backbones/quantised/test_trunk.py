"""Packed trunks under every adapter and of every family, and how far their features are from those of the whole weights."""

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from essa_dist.adapters import inject_adapter
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.backbones.lean import lean_layers
from essa_dist.backbones.quantised import FP8Linear, Kind, QuantisedLinear, packed_away, quantise_trunk
from essa_dist.backbones.quantised.linear import KINDS
from essa_dist.data.shards import open_packed
from essa_dist.evaluation.features import prepare_image
from tests.contracts.test_adapters import FAMILIES, SIZE, settings

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "apla": ({"kind": "apla"}, 3),
    "apla of some rows": ({"kind": "apla", "rank": 9, "targets": ["q", "fc2"]}, 4),
    "bitfit": ({"kind": "bitfit"}, 4),
    "vpt": ({"kind": "vpt", "tokens": 3}, 4),
    "adaptformer": ({"kind": "adaptformer", "dim": 64}, 4),
    "ssf": ({"kind": "ssf"}, 4),
    "ln_tuning": ({"kind": "ln_tuning"}, 4),
    "last_blocks": ({"kind": "last_blocks"}, 2),
    "lora": ({"kind": "lora", "rank": 4, "dropout": 0}, 4),
    "pissa": ({"kind": "lora", "rank": 4, "dropout": 0, "init": "pissa"}, 4),
    "dora": ({"kind": "lora", "rank": 4, "dropout": 0, "dora": True, "targets": ["proj", "fc1"]}, 4),
    "explora": ({"kind": "explora", "rank": 4}, 2),
    "full": ({"kind": "full"}, 0),
}
"""Adapter, and how many of the four linear layers of a block are packed: of two blocks' mean, where they differ."""
WIDTH, DEPTH = 64, 2
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def trunk_of(family: str, case: str) -> Backbone:
    """A tiny trunk with an adapter that has been trained a little."""
    torch.manual_seed(0)
    vit: Any = FAMILIES[family](
        **SIZE | {"embed_dim": WIDTH, "depth": DEPTH}, num_classes=0, global_pool="", dynamic_img_size=True
    )
    vit.pretrained_cfg = {}
    for p in vit.parameters():
        p.data.add_(torch.randn_like(p) * 0.05)
    backbone = Backbone(vit, name=family)
    inject_adapter(backbone, settings(CASES[case][0]), seed=3)
    for p in backbone.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn_like(p) * 0.02)
    return backbone.eval()


def twins(family: str, case: str, kind: Kind) -> tuple[Backbone, Backbone]:
    """A packed trunk, and a plain one whose weights are those that are packed in the other."""
    plain = trunk_of(family, case)
    packed = copy.deepcopy(plain)
    quantise_trunk(packed, kind, dtype=torch.float32)
    for name, layer in packed.named_modules():
        if isinstance(layer, QuantisedLinear):
            plain.get_submodule(name).weight.data = layer.weight
    return packed, plain


def outcome(backbone: Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    """Features, and the gradients of what is trained."""
    found = backbone(IMAGES)
    features = torch.cat([found.cls[:, None], found.patches], dim=1)
    target = torch.randn(features.shape, generator=torch.Generator().manual_seed(4))
    ((features - target) ** 2).sum().backward()
    return features.detach(), {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}


def packed_layers(backbone: nn.Module) -> list[str]:
    return [name for name, m in backbone.named_modules() if isinstance(m, QuantisedLinear)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("family", "kind"), [("dinov2", "nf4"), ("eva02_fused", "fp8")])
def test_under_every_adapter_features_and_gradients_are_those_of_the_unpacked_weights(
    family: str, kind: Kind, case: str
) -> None:
    packed, plain = twins(family, case, kind)
    (features, gradients), (right, expected) = outcome(packed), outcome(plain)
    torch.testing.assert_close(features, right, rtol=1e-4, atol=1e-4)
    trained = {name for name, p in packed.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys() <= trained
    for name, gradient in gradients.items():
        assert float((gradient - expected[name]).norm()) <= 1e-3 * float(expected[name].norm()) + 1e-4, name


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_all_frozen_layers_of_the_blocks_are_packed(family: str) -> None:
    packed, plain = twins(family, "vpt", "int8")
    linears = [name for name, m in plain.named_modules() if type(m) is nn.Linear and ".blocks." in name]
    assert packed_layers(packed) == linears
    assert len(linears) >= 4 * DEPTH
    torch.testing.assert_close(outcome(packed)[0], outcome(plain)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_is_not_packed_and_stays_as_it_was(case: str) -> None:
    before = trunk_of("dinov2", case)
    packed = copy.deepcopy(before)
    quantise_trunk(packed, "int8", dtype=torch.float32)
    trained = {name: p for name, p in before.named_parameters() if p.requires_grad}
    found = {name: p for name, p in packed.named_parameters() if p.requires_grad}
    assert trained.keys() == found.keys()
    assert all(torch.equal(p, found[name]) for name, p in trained.items())
    assert len(packed_layers(packed)) == CASES[case][1] * DEPTH
    assert dict(packed.named_buffers()).keys() == dict(before.named_buffers()).keys()


def test_what_an_adapter_left_frozen_is_not_packed() -> None:
    backbone = trunk_of("dinov2", "adaptformer").requires_grad_(False)
    quantise_trunk(backbone, "int8", dtype=torch.float32)
    assert len(packed_layers(backbone)) == 4 * DEPTH
    assert not [name for name in packed_layers(backbone) if "bottleneck" in name]


def test_layers_that_keep_less_are_packed_inside() -> None:
    backbone = trunk_of("dinov2_swiglu", "vpt")
    lean_layers(backbone.vit, "8bit")
    quantise_trunk(backbone, "int8", dtype=torch.float32)
    assert len(packed_layers(backbone)) == 4 * DEPTH


def test_layers_of_sizes_that_do_not_fit_stay_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        backbone = trunk_of("dinov2_swiglu", "vpt")  # its fc2 has 96 inputs
        quantise_trunk(backbone, "nf4", dtype=torch.float32)
    assert len(packed_layers(backbone)) == 3 * DEPTH
    assert "vit.blocks.0.mlp.fc2" in caplog.text


def test_a_trunk_with_nothing_frozen_is_left_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    quantise_trunk(trunk_of("dinov2", "full"), "int8", dtype=torch.float32)
    assert "engine.trunk=int8: no linear layer of the blocks is frozen" in caplog.text


def test_a_packed_trunk_is_smaller_and_stands_for_as_many_weights() -> None:
    with torch.device("meta"):
        plain = build_backbone(BackboneConfig(name="vit_small_patch16_224", weights="random"))
    weights = sum(p.numel() for p in plain.parameters())
    share = {"fp8": 0.52, "int8": 0.52, "nf4": 0.28}
    for kind in KINDS:
        backbone = copy.deepcopy(plain).requires_grad_(False)
        taken = quantise_trunk(backbone, kind, dtype=torch.bfloat16)
        assert taken == sum(
            p.nbytes for m in backbone.modules() if isinstance(m, QuantisedLinear) for p in m.packed
        )
        assert taken < share[kind] * 12 * 12 * 384**2 * 2  # bf16 bytes of 12 blocks
        assert sum(p.numel() for p in backbone.parameters()) + packed_away(backbone) == weights


BOUNDS = {
    # Of the class tokens and of the patches: least mean cosine, largest relative error.
    "int8": ((0.998, 0.05), (0.995, 0.10)),
    "fp8": ((0.995, 0.10), (0.98, 0.18)),
    "fp8 scaled": ((0.99, 0.13), (0.96, 0.27)),
    "nf4": ((0.93, 0.35), (0.85, 0.55)),
}
"""Of a ViT-Ti, which is hurt most: the wider a model, the less. bf16 alone: 0.9998 and 0.018, 0.9993 and 0.036."""


@pytest.fixture(scope="module")
def real() -> tuple[Backbone, Tensor]:
    """A pretrained trunk, and blood cells as it sees them."""
    backbone = build_backbone(BackboneConfig(name="vit_tiny_patch16_224")).requires_grad_(False).eval()
    images = open_packed("assets/blood_cells:test")
    chosen = range(0, len(images), len(images) // 4)
    stored = zip(chosen, images.read_many(list(chosen)), strict=True)
    pixels = torch.stack([prepare_image(images.decode(i, data), 224) for i, data in stored]).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    return backbone, (pixels - mean) / std


@pytest.mark.parametrize("name", BOUNDS)
def test_features_of_real_images_stay_within_the_stated_bounds(
    name: str, real: tuple[Backbone, Tensor]
) -> None:
    plain, images = real
    kind: Any = name.partition(" ")[0]
    packed = copy.deepcopy(plain)
    quantise_trunk(packed, kind, dtype=torch.bfloat16)
    for layer in packed.modules():
        if isinstance(layer, FP8Linear):
            layer.scaled = name.endswith("scaled")
    with torch.no_grad():
        pairs = zip(plain(images), packed(images), BOUNDS[name], strict=True)
        for right, found, (cosine, error) in pairs:
            assert F.cosine_similarity(right, found, dim=-1).mean() > cosine
            assert (found - right).norm() / right.norm() < error


def test_gradients_through_products_in_8_bits_point_where_those_in_fp32_do(
    real: tuple[Backbone, Tensor],
) -> None:
    plain, images = real
    packed = copy.deepcopy(plain)
    inject_adapter(packed, settings({"kind": "apla"}), seed=0)
    quantise_trunk(packed, "fp8", dtype=torch.float32)
    right = gradients_of(packed, images)
    for layer in packed.modules():
        if isinstance(layer, FP8Linear):
            layer.scaled = True
    found = gradients_of(packed, images)
    assert F.cosine_similarity(found, right, dim=0) > 0.98


def gradients_of(backbone: Backbone, images: Tensor) -> Tensor:
    """Of everything trained, of the mean class token's product with a fixed direction."""
    backbone.zero_grad()
    direction = torch.randn(backbone.embed_dim, generator=torch.Generator().manual_seed(5))
    (backbone(images[:2, :, :128, :128]).cls @ direction).sum().backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])
