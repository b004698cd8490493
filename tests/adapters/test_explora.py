"""ExPLoRA's own promises; the adapter contract is tested in tests/contracts."""

from collections.abc import Callable

import pytest
from timm.models.vision_transformer import VisionTransformer

from essa_dist.adapters.explora import ExPLoRA, ExPLoRAConfig
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError

Tiny = Callable[..., Backbone]


def trained(backbone: Backbone, **settings: object) -> set[str]:
    ExPLoRA(ExPLoRAConfig.model_validate({"rank": 2} | settings)).inject(backbone, seed=0)
    return {name.removeprefix("vit.") for name, p in backbone.named_parameters() if p.requires_grad}


def test_the_last_block_is_trained_whole_and_the_others_by_lora_and_their_norms(tiny: Tiny) -> None:
    plain = tiny(VisionTransformer, depth=3)
    last = {name for name, _ in plain.vit.named_parameters() if name.startswith("blocks.2.")}
    norms = {name for name, _ in plain.vit.named_parameters() if "norm" in name}
    names = trained(tiny(VisionTransformer, depth=3))
    assert last | norms <= names
    assert {name.split(".lora_")[0] for name in names - last - norms} == {
        "blocks.0.attn.qkv",
        "blocks.1.attn.qkv",
    }
    assert not any("lora_" in name for name in last)


def test_blocks_count_from_either_end(tiny: Tiny) -> None:
    one, other = (
        trained(tiny(VisionTransformer, depth=3), blocks=blocks, norms=False) for blocks in ((0, 2), (-1, -3))
    )
    assert one == other
    assert {name.split(".")[1] for name in one if "lora_" in name} == {"1"}
    assert "norm.weight" not in one


def test_a_block_that_is_not_there_is_refused_with_the_range(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=r"adapter.blocks=2: tiny has blocks -2..1"):
        trained(tiny(VisionTransformer), blocks=(2,))
