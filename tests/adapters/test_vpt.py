"""VPT beside the shared contract: a loop over blocks that inserts and drops prompts by hand is the oracle."""

from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from essa_dist.adapters.vpt import VPT, VPTConfig
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError

B, P = 3, 5
FAMILIES: list[tuple[type, dict[str, Any]]] = [
    (VisionTransformer, {}),
    (VisionTransformer, {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1}),
    (Eva, {"num_reg_tokens": 2, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3"}),
    (Eva, {"attn_type": "rope", "use_rot_pos_emb": True, "rope_type": "mixed", "no_embed_class": True}),
]
EACH = pytest.mark.parametrize(("vit_class", "family"), FAMILIES)


def by_hand(base: Backbone, images: Tensor, prompts: list[Tensor], *, deep: bool) -> Tensor:
    """Tokens of the trunk without hooks; rotary attention is shown prompts as places that are turned by no angle."""
    vit, n_prefix = base.vit, base.num_prefix_tokens
    x = vit._pos_embed(vit.patch_embed(images))
    x, rope = x if isinstance(x, tuple) else (x, None)
    for index, block in enumerate(vit.blocks):
        if deep or index == 0:
            x = torch.cat([x[:, :n_prefix], prompts[index].expand(B, -1, -1), x[:, n_prefix:]], dim=1)
        if rope is None:
            x = block(x)
        else:
            own = rope[index] if vit.rope_mixed else rope  # [..., N, sines and cosines]
            sines, cosines = own[..., :P, :].chunk(2, dim=-1)
            still = torch.cat([torch.zeros_like(sines), torch.ones_like(cosines)], dim=-1)
            x = block(x, rope=torch.cat([still, own], dim=-2))
        if deep or block is vit.blocks[-1]:
            x = torch.cat([x[:, :n_prefix], x[:, n_prefix + P :]], dim=1)
    out: Tensor = vit.norm(x)
    return out


@EACH
@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("side", [16, 24])
@torch.no_grad()
def test_features_are_those_of_prompts_inserted_by_hand(
    tiny: Any, vit_class: type, family: dict[str, Any], deep: bool, side: int
) -> None:
    backbone, images = tiny(vit_class, **family), torch.randn(B, 3, side, side)
    VPT(VPTConfig(tokens=P, deep=deep)).inject(backbone, seed=4)
    prompts = [p for name, p in backbone.named_parameters() if name.endswith("prompts.tokens")]
    assert len(prompts) == (2 if deep else 1)
    expected = by_hand(tiny(vit_class, **family), images, prompts, deep=deep)
    torch.testing.assert_close(backbone.vit.forward_features(images), expected)
    out = backbone(images)
    torch.testing.assert_close(out.cls, expected[:, 0])
    torch.testing.assert_close(out.patches, expected[:, backbone.num_prefix_tokens :])
    assert out.patches.shape[1] == (side // 4) ** 2


@EACH
@torch.no_grad()
def test_masks_still_hit_the_patches(tiny: Any, vit_class: type, family: dict[str, Any]) -> None:
    backbone, images = tiny(vit_class, **family), torch.randn(B, 3, 16, 16)
    VPT(VPTConfig(tokens=P)).inject(backbone, seed=4)
    masks = torch.zeros(B, 16, dtype=torch.bool)
    masks[:, 6] = True  # second row, third column
    other = images.clone()
    other[:, :, 4:8, 8:12] += 1
    assert torch.equal(backbone(images, masks).patches, backbone(other, masks).patches)
    assert not torch.equal(backbone(images).patches, backbone(other).patches)


def test_blocks_draw_prompts_of_their_own_within_xaviers_bounds(tiny: Any) -> None:
    backbone = tiny(VisionTransformer)
    VPT(VPTConfig(tokens=40)).inject(backbone, seed=4)
    first, second = (block.prompts.tokens for block in backbone.vit.blocks)
    bound = (6 / (3 * 4 * 4 + 24)) ** 0.5
    assert not torch.equal(first, second)
    for tokens in (first, second):
        assert tokens.shape == (1, 40, 24)
        assert 0.97 * bound < tokens.abs().max() <= bound
        assert tokens.mean().abs() < 0.1 * bound


@torch.no_grad()
def test_dropout_is_of_the_training_student_alone(tiny: Any) -> None:
    backbone, images = tiny(VisionTransformer).eval(), torch.randn(B, 3, 16, 16)
    VPT(VPTConfig(tokens=P, dropout=0.5)).inject(backbone, seed=4)
    quiet = backbone(images).cls
    assert torch.equal(backbone(images).cls, quiet)
    assert not torch.equal(backbone.train()(images).cls, quiet)


@torch.no_grad()
def test_a_second_vpt_trains_the_prompts_that_are_there_on(tiny: Any) -> None:
    backbone, images = tiny(VisionTransformer).eval(), torch.randn(B, 3, 16, 16)
    VPT(VPTConfig(tokens=P)).inject(backbone, seed=0)
    names, before = [name for name, _ in backbone.named_parameters()], backbone(images).cls
    backbone.requires_grad_(False)
    VPT(VPTConfig(tokens=P, dropout=0.5)).inject(backbone, seed=7)
    assert [name for name, _ in backbone.named_parameters()] == names
    assert torch.equal(backbone.eval()(images).cls, before)
    assert not torch.equal(backbone.train()(images).cls, before)
    assert [name for name, p in backbone.named_parameters() if p.requires_grad] == [
        name for name in names if name.endswith("prompts.tokens")
    ]


def test_a_second_vpt_of_another_shape_is_refused(tiny: Any) -> None:
    backbone = tiny(VisionTransformer)
    VPT(VPTConfig()).inject(backbone, seed=0)
    with pytest.raises(UsageError, match=r"adapter\.tokens=10 adapter\.deep=true; given were 10 and false"):
        VPT(VPTConfig(deep=False)).inject(backbone, seed=0)
