"""Weights that are read are not drawn first, and are the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.backbones.undrawn import Undrawn
from essa_dist.backbones.weights import parameters_sha256


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_model_from_a_file_has_no_number_that_is_not_of_the_file(name: str, tmp_path: Path) -> None:
    drawn = build_backbone(BackboneConfig(name=name, weights="random"), seed=7)
    save_file(drawn.vit.state_dict(), tmp_path / "weights.safetensors")
    read = build_backbone(BackboneConfig(name=name, weights=str(tmp_path / "weights.safetensors")))
    assert parameters_sha256(read) == parameters_sha256(drawn)
    buffers = dict(drawn.named_buffers())
    assert buffers.keys() == dict(read.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in read.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_become_fp32_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    drawn = build_backbone(BackboneConfig(name="test_vit", weights="random"), seed=7)
    held = {key: tensor.to(dtype) for key, tensor in drawn.vit.state_dict().items()}
    save_file(held, tmp_path / "weights.safetensors")
    read = build_backbone(BackboneConfig(name="test_vit", weights=str(tmp_path / "weights.safetensors")))
    for key, tensor in read.vit.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, held[key].float())


def test_tensors_that_a_file_may_lack_are_drawn_by_the_seed(tmp_path: Path) -> None:
    drawn = build_backbone(BackboneConfig(name="test_vit", weights="random"), seed=7)
    held = drawn.vit.state_dict()
    del held["blocks.0.attn.qkv.weight"]
    save_file(held, tmp_path / "weights.safetensors")
    config = BackboneConfig(
        name="test_vit",
        weights=str(tmp_path / "weights.safetensors"),
        allow_missing=("blocks.0.attn.qkv.weight",),
    )
    assert parameters_sha256(build_backbone(config, seed=7)) == parameters_sha256(drawn)
    assert parameters_sha256(build_backbone(config, seed=8)) != parameters_sha256(drawn)


def test_only_random_numbers_are_left_out() -> None:
    state = torch.get_rng_state()
    with Undrawn():
        layer = nn.Linear(3, 5)
        norm, ones = nn.LayerNorm(4), torch.full((2, 3), 7.0).add_(1)
        nn.init.trunc_normal_(torch.empty(6, 7), std=0.02)
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.weight.shape == (5, 3)
    assert torch.equal(norm.weight, torch.ones(4))
    assert torch.equal(ones, torch.full((2, 3), 8.0))
    assert nn.Linear(3, 5).weight.isfinite().all()
    assert not torch.equal(torch.get_rng_state(), state)
