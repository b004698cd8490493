"""The library's own layout gives back the very same model, with an adapter that no plain ViT can hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from essa_dist.adapters import ADAPTERS
from essa_dist.adapters.vpt import VPTConfig
from essa_dist.backbones import Backbone
from essa_dist.errors import WeightsError
from essa_dist.export import essa

Write = Callable[..., tuple[Path, dict[str, Any]]]
UNMERGEABLE = [kind for kind, (_, adapter) in ADAPTERS.items() if not adapter.merges]


@pytest.mark.parametrize("kind", UNMERGEABLE)
@torch.no_grad()
def test_a_model_with_its_adapters_modules_is_read_back_bit_for_bit(
    kind: str, untrained: Callable[..., Backbone], adapted: Callable[..., Backbone], write: Write
) -> None:
    backbone = adapted(untrained("test_vit", mean=(0.1, 0.2, 0.3)), ADAPTERS[kind][0]())
    out, found = write(backbone, "essa")
    assert (found["adapter"], found["merged"]) == (kind, False)
    again = essa.read(out)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    for found_tokens, wanted in zip(again(images), backbone(images), strict=True):
        assert torch.equal(found_tokens, wanted)
    assert (again.mean, again.std) == (backbone.mean, backbone.std)
    assert (again.adapter_settings, again.adapter_seed) == (backbone.adapter_settings, 11)
    assert torch.equal(again.mask_token, backbone.mask_token)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert "its modules are part of this model" in (out / "README.md").read_text()


def test_vpt_and_adaptformer_are_such_adapters() -> None:
    assert {"vpt", "adaptformer"} <= set(UNMERGEABLE)


def test_tensors_that_are_not_the_adapters_are_refused(
    untrained: Callable[..., Backbone], adapted: Callable[..., Backbone], write: Write
) -> None:
    file = write(adapted(untrained("test_vit"), VPTConfig()), "essa")[0] / "model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if name != "vit.norm.bias"}, file)
    with pytest.raises(WeightsError, match=r"does not fit its config.json: missing vit.norm.bias"):
        essa.read(file.parent)


def test_a_plain_model_says_that_it_has_no_adapter(untrained: Callable[..., Backbone], write: Write) -> None:
    out, _ = write(untrained("test_vit"), "essa")
    settings = json.loads((out / "config.json").read_text())
    assert (settings["format"], settings["adapter"]) == ("essa", None)
    assert settings["backbone"] == {"name": "test_vit", "pos_embed": "timm"}


def test_the_code_in_the_card_gives_the_model(
    untrained: Callable[..., Backbone],
    adapted: Callable[..., Backbone],
    write: Write,
    card_code: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = adapted(untrained("test_vit"), VPTConfig(tokens=3))
    out, _ = write(backbone, "essa")
    monkeypatch.chdir(out)
    names: dict[str, Any] = {"images": torch.randn(2, 3, 160, 160)}
    (block,) = card_code(out)
    exec(block, names)
    torch.testing.assert_close(names["cls"], backbone(names["images"]).cls)
