"""How many numbers each adapter trains, on the shapes of real models without their memory (the meta device).

Source of the DINOv2 rows: arithmetic over Meta's shapes, patch 14 at 518 px, no registers; ESSA publishes no counts.
"""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.backbones import Backbone, BackboneConfig, build_architecture


@cache
def on_meta(name: str) -> Backbone:
    with torch.device("meta"):
        return build_architecture(BackboneConfig(name=name))


def trained(name: str, settings: dict[str, Any]) -> int:
    backbone = copy.deepcopy(on_meta(name))
    inject_adapter(backbone, TypeAdapter(AdapterConfig).validate_python(settings), seed=0)
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    return sum(p.numel() for p in backbone.parameters() if p.requires_grad)


SIZES = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14")
DINOV2: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "apla": ({"kind": "apla"}, (1_774_080, 7_087_104, 25_190_400, 94_433_280)),
    "apla-128": ({"kind": "apla", "rank": 128}, (591_360, 1_181_184, 3_148_800, 7_869_440)),
    "apla-8": ({"kind": "apla", "rank": 8}, (36_960, 73_824, 196_800, 491_840)),
    "bitfit": ({"kind": "bitfit"}, (51_456, 102_912, 272_384, 760_832)),
    "lora-qv-4": ({"kind": "lora", "rank": 4}, (73_728, 147_456, 393_216, 983_040)),
    "vpt-deep-10": ({"kind": "vpt", "tokens": 10}, (46_080, 92_160, 245_760, 614_400)),
}


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        pytest.param(size, settings, count, id=f"{size}-{row}")
        for row, (settings, counts) in DINOV2.items()
        for size, count in zip(SIZES, counts, strict=True)
    ],
)
def test_dinov2_shapes_train_what_arithmetic_over_their_widths_says(
    name: str, settings: dict[str, Any], count: int
) -> None:
    assert trained(name, settings) == count


@pytest.mark.parametrize(
    ("name", "total"),
    [*zip(SIZES, (22_056_576, 86_580_480, 304_368_640, 1_136_480_768), strict=True)],
)
def test_trunks_have_the_size_of_metas_with_the_mask_token(name: str, total: int) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == total


def test_med_peft_trains_its_lora_the_pooled_norm_and_the_head() -> None:
    # Its totals for ViT-B/16 and the 14 labels of NIH, arXiv:2401.12215: the rest is LoRA on q and v.
    norm_and_head = 2 * 768 + 14 * 768 + 14
    for rank, total in ((4, 159_758), (8, 307_214), (16, 602_126), (32, 1_191_950)):
        lora = trained("vit_base_patch16_224", {"kind": "lora", "rank": rank})
        assert lora + norm_and_head == total


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        # Per block: 768 * 64 + 64 down, 64 * 768 + 768 up.
        ({"kind": "adaptformer"}, 12 * 99_136),
        ({"kind": "adaptformer", "scale": "learned"}, 12 * 99_137),
        # SSF reports 0.28 M with its head for CIFAR-100, which has 76,900 of them.
        ({"kind": "ssf"}, 282_724 - 76_900),
        ({"kind": "ln_tuning"}, 25 * 2 * 768),
        ({"kind": "last_blocks"}, 7_087_872 + 2 * 768),
        ({"kind": "last_blocks", "blocks": 3, "norm": False}, 3 * 7_087_872),
        ({"kind": "vpt", "tokens": 50, "deep": False}, 50 * 768),
    ],
)
def test_vit_b16_trains_what_the_formula_of_each_adapter_says(settings: dict[str, Any], count: int) -> None:
    assert trained("vit_base_patch16_224", settings) == count
