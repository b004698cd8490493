"""The backbone: published sizes, masks where they belong, DINOv2's position rule."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.backbones import BackboneConfig, build_architecture
from essa_dist.backbones.position import interpolate_dinov2
from essa_dist.errors import UsageError


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dinov2_vits14", 22_056_576),
        ("dinov2_vitb14", 86_580_480),
        ("dinov2_vitl14", 304_368_640),
        ("dinov2_vitg14", 1_136_480_768),
    ],
)
def test_parameter_counts_are_metas(name: str, count: int) -> None:
    with torch.device("meta"):
        backbone = build_architecture(BackboneConfig(name=name))
    assert sum(p.numel() for p in backbone.parameters()) == count


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "dinov2_vitt14"])
@torch.no_grad()
def test_features_are_timms_own_tokens_at_any_size(name: str) -> None:
    backbone = build_architecture(BackboneConfig(name=name)).eval()
    side = 4 * backbone.patch_size
    images = torch.randn(2, 3, side, 2 * side)
    out = backbone(images)
    assert out.cls.shape == (2, 192)
    assert out.patches.shape == (2, 32, 192)
    tokens = backbone.vit.forward_features(images)
    assert torch.equal(torch.cat([out.cls[:, None], out.patches], dim=1), tokens)


@torch.no_grad()
def test_a_masked_patch_is_replaced_before_the_first_block() -> None:
    backbone = build_architecture(BackboneConfig(name="test_vit", weights="random")).eval()
    backbone.mask_token.normal_()
    images = torch.randn(1, 3, 48, 48)
    masks = torch.zeros(1, 9, dtype=torch.bool)
    masks[0, 4] = True
    changed = images.clone()
    changed[..., 16:32, 16:32] = 7.0  # the masked patch's own pixels must not matter
    assert torch.equal(backbone(images, masks).cls, backbone(changed, masks).cls)
    assert not torch.allclose(backbone(images, masks).cls, backbone(images).cls)
    assert torch.equal(backbone(images, torch.zeros_like(masks)).cls, backbone(images).cls)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    backbone = build_architecture(BackboneConfig(name="test_vit"))
    with pytest.raises(UsageError, match="50x48 is not a multiple of the patch size 16 of test_vit"):
        backbone(torch.zeros(1, 3, 50, 48))


def naive_dinov2(patches_1NC: Tensor, native: int, grid: int) -> Tensor:
    """The rule as its authors state it: scale factor (grid + 0.1) / native, bicubic, no antialias."""
    image = patches_1NC.reshape(1, native, native, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / native
    out = F.interpolate(image, scale_factor=(scale, scale), mode="bicubic")
    return out.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)


@pytest.mark.parametrize("grid", [7, 16, 37])
def test_position_embeddings_follow_dinov2_and_are_untouched_at_native_size(grid: int) -> None:
    patches = torch.randn(1, 37 * 37, 8)
    found = interpolate_dinov2(patches, (37, 37), (grid, grid))
    torch.testing.assert_close(found, patches if grid == 37 else naive_dinov2(patches, 37, grid))


def test_the_rule_differs_from_timms_so_the_choice_matters() -> None:
    torch.manual_seed(0)
    kwargs = {"name": "dinov2_vitt14", "weights": "random"}
    one, other = (build_architecture(BackboneConfig(**kwargs, pos_embed=rule)) for rule in ("dinov2", "timm"))
    other.load_state_dict(one.state_dict())
    images = torch.randn(1, 3, 98, 98)
    assert not torch.allclose(one.eval()(images).patches, other.eval()(images).patches, atol=1e-2)
