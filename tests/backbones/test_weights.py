"""Weights come from where they should or not at all, and never silently."""

import logging
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from essa_dist.backbones import BackboneConfig, build_architecture, build_backbone, weights
from essa_dist.backbones.weights import EMBEDDED
from essa_dist.errors import UsageError, WeightsError

EMBEDDED_NAME = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "said", set())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_auto_takes_the_embedded_file_offline_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        backbone = build_backbone(BackboneConfig(name=EMBEDDED_NAME))
        build_backbone(BackboneConfig(name=EMBEDDED_NAME))
    assert sum("using the embedded weights" in message for message in caplog.messages) == 1
    assert backbone.weights_source.startswith("embedded")
    assert len(backbone.weights_sha256 or "") == 64
    official = load_file(EMBEDDED[EMBEDDED_NAME])
    assert torch.equal(backbone.vit.blocks[3].attn.qkv.weight, official["blocks.3.attn.qkv.weight"].float())


def test_auto_without_hub_or_file_is_an_error_that_shows_the_offline_way() -> None:
    with pytest.raises(
        WeightsError, match=r"can't be fetched .*huggingface-cli download timm/vit_small.*backbone.weights="
    ) as e:
        build_backbone(BackboneConfig(name="dinov2_vits14"))
    assert "\n" not in str(e.value)


def test_random_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_backbone(BackboneConfig(name="test_vit", weights="random"))
    assert any("RANDOM weights" in message for message in caplog.messages)


def test_a_dinov2_file_gives_trunk_and_mask_token(tmp_path: Path) -> None:
    source = build_architecture(BackboneConfig(name="dinov2_vitt14"))
    state = {k: torch.randn_like(v) for k, v in source.vit.state_dict().items()}
    torch.save(
        {
            "teacher": {f"backbone.{k}": v for k, v in state.items()}
            | {"backbone.mask_token": torch.ones(1, 192)}
        },
        tmp_path / "w.pth",
    )
    loaded = build_backbone(BackboneConfig(name="dinov2_vitt14", weights=str(tmp_path / "w.pth")))
    assert torch.equal(loaded.mask_token, torch.ones(1, 192))
    assert all(torch.equal(v, state[k]) for k, v in loaded.vit.state_dict().items())


def test_a_classifier_head_is_dropped_and_another_grid_is_resized(tmp_path: Path) -> None:
    state = build_architecture(BackboneConfig(name="test_vit")).vit.state_dict()
    grid = int((state["pos_embed"].shape[1] - 1) ** 0.5)
    smaller = torch.randn(1, 1 + (grid - 2) ** 2, state["pos_embed"].shape[2])
    save_file(state | {"head.weight": torch.zeros(3, 64), "pos_embed": smaller}, tmp_path / "w.safetensors")
    loaded = build_backbone(BackboneConfig(name="test_vit", weights=str(tmp_path / "w.safetensors")))
    assert loaded.vit.pos_embed.shape == state["pos_embed"].shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), "does not fit test_vit: missing norm.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"norm.bias": torch.zeros(7)}), r"norm.bias is \[7\], test_vit needs \[64\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_tensor_by_tensor(change, message: str, tmp_path: Path) -> None:
    state = build_architecture(BackboneConfig(name="test_vit")).vit.state_dict()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        build_backbone(BackboneConfig(name="test_vit", weights=str(tmp_path / "w.safetensors")))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_hostile_pickle_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"patch_embed.proj.weight": Bomb()}))
    with pytest.raises(WeightsError, match=r"w\.pth"):
        build_backbone(BackboneConfig(name="test_vit", weights="w.pth"))
    assert not (tmp_path / "executed").exists()


def test_a_truncated_safetensors_file_is_one_line(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:500])
    with pytest.raises(WeightsError, match="can't be read") as error:
        build_backbone(BackboneConfig(name="test_vit", weights=str(tmp_path / "w.safetensors")))
    assert "\n" not in str(error.value)


def test_an_unknown_name_shows_near_ones() -> None:
    with pytest.raises(UsageError, match=r"not a timm model; near it: .*vit_base_patch14"):
        build_architecture(BackboneConfig(name="vit_base_patch14_dino"))


def test_hub_weights_that_average_tokens_give_their_norm_to_the_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: Any) -> Any:
        vit = real(name, pretrained=False, **settings)
        if pretrained:
            torch.nn.init.constant_(vit.fc_norm.weight, 3.0)
        return vit

    monkeypatch.setattr(timm, "create_model", create)
    backbone = build_backbone(BackboneConfig(name="eva02_tiny_patch14_224"))
    assert backbone.weights_source.startswith("timm hub")
    assert bool((backbone.vit.norm.weight == 3).all())
    assert backbone.load_report is not None
    assert ("fc_norm.weight", "norm.weight") in backbone.load_report.renamed
