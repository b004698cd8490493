"""transformers loads the folder by its own classes and computes the model's features, masked ones too."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from essa_dist.backbones import Backbone
from essa_dist.errors import WeightsError

Small = Callable[..., Backbone]
CLASSES = {
    "plain": "Dinov2Model",
    "scaled": "Dinov2Model",
    "registers": "Dinov2WithRegistersModel",
    "swiglu": "Dinov2WithRegistersModel",
    "grey": "Dinov2Model",
    "dinov3": "DINOv3ViTModel",
    "dinov3_biased": "DINOv3ViTModel",
    "dinov3_gated": "DINOv3ViTModel",
}


@pytest.mark.parametrize("shape", CLASSES)
@torch.no_grad()
def test_transformers_computes_the_features_with_and_without_masks(
    shape: str, small: Small, write: Callable[..., Any]
) -> None:
    from transformers import AutoModel

    backbone = small(shape)
    out, found = write(backbone, "huggingface")
    assert found["max_difference"] <= 1e-5
    model, notes = AutoModel.from_pretrained(out, output_loading_info=True)
    assert type(model).__name__ == CLASSES[shape]
    assert not any(notes.values())
    random = torch.Generator().manual_seed(1)
    images = torch.randn(2, backbone.vit.patch_embed.proj.in_channels, 16, 16, generator=random)
    masks = torch.rand(2, 16, generator=random) < 0.5
    for ours, theirs in (
        (backbone(images), model(pixel_values=images)),
        (backbone(images, masks), model(pixel_values=images, bool_masked_pos=masks)),
    ):
        tokens = theirs.last_hidden_state
        torch.testing.assert_close(tokens[:, 0], ours.cls, rtol=0, atol=1e-5)
        torch.testing.assert_close(tokens[:, backbone.num_prefix_tokens :], ours.patches, rtol=0, atol=1e-5)


def test_the_configuration_tells_the_shape(small: Small, write: Callable[..., Any]) -> None:
    out, _ = write(small("swiglu", num_heads=2), "huggingface")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Dinov2WithRegistersModel"]
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 4,
        "use_swiglu_ffn": True,
        "num_register_tokens": 4,
        "image_size": 16,
        "patch_size": 4,
        "num_channels": 3,
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
    }
    assert {name: config[name] for name in shape} == shape


def test_the_processor_shows_the_whole_image_normalised(small: Small, write: Callable[..., Any]) -> None:
    from transformers import AutoImageProcessor

    backbone = small("scaled")
    out, _ = write(backbone, "huggingface")
    colour = np.full((8, 30, 3), (51, 102, 204), np.uint8)
    pixels = AutoImageProcessor.from_pretrained(out)(Image.fromarray(colour), return_tensors="pt")
    wanted = (torch.tensor([0.2, 0.4, 0.8]) - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    torch.testing.assert_close(
        pixels["pixel_values"], wanted.view(1, 3, 1, 1).expand(1, 3, 16, 16), rtol=0, atol=1e-5
    )


def test_resizing_by_transformers_own_rule_is_measured_not_refused(
    small: Small, write: Callable[..., Any]
) -> None:
    out, found = write(small("plain"), "huggingface")
    assert found["max_difference_resized"] > found["tolerance"]
    card = (out / "README.md").read_text()
    assert (
        "At 8 px, where transformers' own resizing of position embeddings enters, they differ by "
        f"{found['max_difference_resized']:.1e}" in card
    )


@pytest.mark.parametrize(
    ("shape", "others", "missing"),
    [
        ("eva02", {}, "the position embedding"),
        ("plain", {"mlp_ratio": 3.5}, "the mlp_ratio 3.5"),
        ("plain", {"act_layer": "quick_gelu"}, "the activation"),
        ("plain", {"act_layer": "gelu_tanh"}, "the activation"),
        ("plain", {"pos_embed": "none"}, "position embeddings"),
        ("plain", {"qk_norm": True}, "norm"),
    ],
)
def test_a_trunk_that_transformers_has_no_class_for_is_refused(
    shape: str, others: dict[str, Any], missing: str, small: Small, write: Callable[..., Any]
) -> None:
    with pytest.raises(WeightsError, match=f"has no place for .*{missing}.*timm's format"):
        write(small(shape, **others), "huggingface")


def test_the_code_in_the_card_runs_and_gives_the_features(
    small: Small, write: Callable[..., Any], card_code: Any, as_a_stranger: Any
) -> None:
    backbone = small("registers")
    out, _ = write(backbone, "huggingface")
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (block,) = card_code(out)
    cls, patches = as_a_stranger(out, block, images, ["cls", "patches"])
    torch.testing.assert_close(cls, backbone(images).cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(patches, backbone(images).patches, rtol=0, atol=1e-5)
