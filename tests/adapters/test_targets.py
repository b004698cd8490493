"""Short names mean the same layers in every family of ViTs."""

import pytest
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from essa_dist.adapters.targets import find_targets
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError

SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2, "num_classes": 0}


def fused() -> Backbone:
    vit = VisionTransformer(**SIZE, dynamic_img_size=True)
    vit.pretrained_cfg = {}
    return Backbone(vit, name="fused")


def split() -> Backbone:
    vit = Eva(**SIZE, dynamic_img_size=True, swiglu_mlp=True, scale_mlp=True, qkv_fused=False)
    vit.pretrained_cfg = {}
    return Backbone(vit, name="split")


def found(backbone: Backbone, name: str) -> list[tuple[str, int, int]]:
    return [
        (t.name.removeprefix("vit.blocks.1."), t.rows.start, t.rows.stop)
        for t in find_targets(backbone, [name], blocks=[1])
    ]


def test_parts_of_a_fused_layer_are_rows_of_it() -> None:
    assert found(fused(), "q") == [("attn.qkv", 0, 12)]
    assert found(fused(), "k") == [("attn.qkv", 12, 24)]
    assert found(fused(), "v") == [("attn.qkv", 24, 36)]
    assert found(fused(), "qkv") == [("attn.qkv", 0, 36)]


def test_split_layers_go_by_the_same_names() -> None:
    assert found(split(), "v") == [("attn.v_proj", 0, 12)]
    assert [name for name, _, _ in found(split(), "qkv")] == ["attn.q_proj", "attn.k_proj", "attn.v_proj"]
    assert [name for name, _, _ in found(split(), "fc1")] == ["mlp.fc1_g", "mlp.fc1_x"]
    assert [name for name, _, _ in found(split(), "fc2")] == ["mlp.fc2"]


def test_timms_own_names_are_taken_too_in_every_block() -> None:
    targets = find_targets(fused(), ["attn.proj", "fc1"])
    assert [t.name for t in targets][:3] == [
        "vit.blocks.0.attn.proj",
        "vit.blocks.0.mlp.fc1",
        "vit.blocks.1.attn.proj",
    ]
    assert len(targets) == 6
    assert all(t.whole for t in targets)


def test_a_name_that_no_block_has_lists_what_there_is() -> None:
    with pytest.raises(
        UsageError, match=r"'attn.q_proj' matches no linear layer of fused; .*q, k, v.*attn.qkv"
    ):
        find_targets(fused(), ["attn.q_proj"])
