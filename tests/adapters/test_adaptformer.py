"""AdaptFormer beside the shared contract: the paper's formula, written out block by block, is the oracle."""

import copy
from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from essa_dist.adapters.adaptformer import AdaptFormer, AdaptFormerConfig
from essa_dist.backbones import Backbone
from essa_dist.backbones.recompute import recompute_blocks
from essa_dist.errors import UsageError

B, N, C, D = 16, 5, 24, 7


def injected(backbone: Backbone, **settings: Any) -> Backbone:
    AdaptFormer(AdaptFormerConfig(dim=D, **settings)).inject(backbone, seed=4)
    generator = torch.Generator().manual_seed(5)
    for block in backbone.vit.blocks:  # stands for training: biases and the upward layer start at zero
        for p in block.bottleneck.parameters():
            p.data.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return backbone


def branch(block: Any, x_BNC: Tensor, scale: float | Tensor) -> Tensor:
    own = block.bottleneck
    hidden = (x_BNC @ own.down.weight.T + own.down.bias).clamp(min=0)
    return scale * (hidden @ own.up.weight.T + own.up.bias)


def without(block: Any, *layers: nn.Module) -> Any:
    """A copy of the block in which these layers of it give zeros."""
    memo: dict[int, Any] = {}
    silent = copy.deepcopy(block, memo)
    for layer in layers:
        for p in memo[id(layer)].parameters():
            p.data.zero_()
    return silent


@pytest.mark.parametrize(
    ("vit_class", "family"),
    [
        (VisionTransformer, {}),
        (VisionTransformer, {"init_values": 0.1}),
        (Eva, {}),
        (Eva, {"init_values": 0.1, "swiglu_mlp": True, "scale_mlp": True}),
    ],
)
@pytest.mark.parametrize("scale", [0.3, "learned"])
@torch.no_grad()
def test_a_block_is_the_papers_formula(
    tiny: Any, vit_class: type, family: dict[str, Any], scale: float | str
) -> None:
    block: Any = injected(tiny(vit_class, **family), scale=scale).vit.blocks[1].eval()
    plain: Any = tiny(vit_class, **family).vit.blocks[1].eval()
    x_BNC = torch.randn(B, N, C)
    attended = without(plain, plain.mlp.fc2)(x_BNC)
    factor = scale if isinstance(scale, float) else block.bottleneck.scale
    expected = plain(x_BNC) + branch(block, plain.norm2(attended), factor)
    torch.testing.assert_close(block(x_BNC), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_stochastic_depth_drops_the_branch_with_the_mlp(tiny: Any) -> None:
    backbone = injected(tiny(VisionTransformer, drop_path_rate=0.5))
    block: Any = backbone.vit.blocks[1].train()
    block.drop_path1 = nn.Identity()
    x_BNC = torch.randn(B, N, C)
    attended = without(block, block.mlp.fc2, block.bottleneck.up)(x_BNC)
    kept = block.eval()(x_BNC) - attended
    torch.manual_seed(1)
    added = block.train()(x_BNC) - attended
    dropped = [bool(sample.abs().max() < 1e-6) for sample in added]
    assert {True, False} == set(dropped)
    for sample, full, gone in zip(added, kept, dropped, strict=True):
        torch.testing.assert_close(sample, torch.zeros_like(full) if gone else 2 * full, rtol=1e-4, atol=1e-5)


def test_nothing_of_a_recomputed_block_is_kept(tiny: Any) -> None:
    backbone = injected(tiny(VisionTransformer, init_values=0.1))
    recompute_blocks(backbone.vit)
    backbone(torch.randn(B, 3, 16, 16)).cls.square().sum().backward()
    assert [block.bottleneck._branch for block in backbone.vit.blocks] == [None, None]
    copy.deepcopy(backbone)  # refuses tensors that belong to a graph


@pytest.mark.parametrize(
    ("vit_class", "family", "named"),
    [
        (VisionTransformer, {"block_fn": ResPostBlock}, "ResPostBlock"),
        (Eva, {"use_post_norm": True}, "EvaBlockPostNorm"),
    ],
)
def test_blocks_with_the_norm_behind_the_mlp_are_refused(
    tiny: Any, vit_class: type, family: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=rf"norm before the MLP; tiny has {named}: choose another"):
        AdaptFormer(AdaptFormerConfig()).inject(tiny(vit_class, **family), seed=0)


@torch.no_grad()
def test_a_second_adaptformer_trains_the_bottlenecks_that_are_there_on(tiny: Any) -> None:
    backbone, images = injected(tiny(VisionTransformer)).eval(), torch.randn(2, 3, 16, 16)
    for block in backbone.vit.blocks:
        block.bottleneck.up.weight.normal_()
    names, before = [name for name, _ in backbone.named_parameters()], backbone(images).cls
    again = backbone.requires_grad_(False)
    AdaptFormer(AdaptFormerConfig(dim=D)).inject(again, seed=9)
    assert [name for name, _ in again.named_parameters()] == names
    assert torch.equal(again(images).cls, before)
    trained = [name for name, p in again.named_parameters() if p.requires_grad]
    assert trained == [name for name in names if ".bottleneck." in name]


def test_a_second_adaptformer_of_another_width_is_refused(tiny: Any) -> None:
    backbone = injected(tiny(VisionTransformer))
    with pytest.raises(UsageError, match=r"adapter\.dim=\d+ .*given were 77"):
        AdaptFormer(AdaptFormerConfig(dim=77)).inject(backbone, seed=0)
