"""Training the last blocks, beside the shared contract."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.adapters.last_blocks import LastBlocks, LastBlocksConfig
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError


def trained(backbone: Backbone) -> set[str]:
    return {name for name, p in backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("vit_class", [VisionTransformer, Eva])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_the_last_blocks_are_trained_whole_and_nothing_else(
    tiny: Any, vit_class: type, blocks: int, norm: bool
) -> None:
    backbone = tiny(vit_class, depth=3, init_values=0.1)
    LastBlocks(LastBlocksConfig(blocks=blocks, norm=norm)).inject(backbone, seed=0)
    starts = tuple(f"vit.blocks.{index}." for index in range(3 - blocks, 3)) + ("vit.norm.",) * norm
    assert trained(backbone) == {n for n, _ in backbone.named_parameters() if n.startswith(starts)}


def test_no_graph_is_kept_below_the_first_trained_block(tiny: Any) -> None:
    backbone = tiny(VisionTransformer, depth=3)
    LastBlocks(LastBlocksConfig(blocks=2)).inject(backbone, seed=0)
    in_graph: list[bool] = []
    for block in backbone.vit.blocks:
        block.register_forward_hook(lambda module, args, output: in_graph.append(output.requires_grad))
    backbone(torch.randn(2, 3, 16, 16))
    assert in_graph == [False, True, True]


def test_more_blocks_than_there_are_is_refused(tiny: Any) -> None:
    with pytest.raises(UsageError, match=r"adapter\.blocks must be in 1\.\.2 \(blocks of tiny\), got 3"):
        LastBlocks(LastBlocksConfig(blocks=3)).inject(tiny(VisionTransformer), seed=0)


@pytest.mark.parametrize(
    ("kind", "frozen", "layer"),
    [
        ("apla+last_blocks", "attn.proj.base.weight", {"attn.proj.weight", "attn.proj.bias"}),
        ("last_blocks+apla", "attn.proj.base.weight", {"attn.proj.weight", "attn.proj.bias"}),
        ("lora+last_blocks", "attn.qkv.base_layer.weight", set()),
    ],
)
def test_what_another_adapter_put_into_a_block_is_left_to_it(
    tiny: Any, kind: str, frozen: str, layer: set[str]
) -> None:
    # APLA and DoRA read their frozen layer without calling it: trained, it would have no teacher.
    backbone = tiny(VisionTransformer)
    config = TypeAdapter(AdapterConfig).validate_python({"kind": kind, "rank": 3})
    inject_adapter(backbone, config, seed=0)
    everything = {n.removeprefix("vit.blocks.1.") for n, _ in backbone.named_parameters()}
    last = {n.removeprefix("vit.blocks.1.") for n in trained(backbone) if n.startswith("vit.blocks.1.")}
    assert frozen in everything - last
    assert {"norm1.weight", "mlp.fc1.weight", "mlp.fc2.bias"} | layer <= last
