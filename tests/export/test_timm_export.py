"""Plain timm computes the model's features from the folder, by each way that it loads it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from essa_dist.backbones import Backbone
from essa_dist.export import ExportConfig, export
from essa_dist.export.timm import reads_folders

TINY = "vit_tiny_patch16_224"
Run = Callable[..., Path]
needs_folders = pytest.mark.skipif(not reads_folders(), reason="this timm does not know local-dir:")


@pytest.fixture(scope="module")
def tiny(untrained: Callable[..., Backbone]) -> Backbone:
    return untrained(TINY)


def settings(run: Path) -> ExportConfig:
    return ExportConfig(run=str(run), out=str(run.parent / "out"))


def images(backbone: Backbone, *, n: int = 1) -> Tensor:
    shape = (n, backbone.vit.patch_embed.proj.in_channels, backbone.image_size, backbone.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_features(model: nn.Module, backbone: Backbone) -> None:
    torch.testing.assert_close(
        model.eval()(images(backbone)), backbone(images(backbone)).cls, rtol=0, atol=1e-5
    )


def load_as_the_config_says(out: Path) -> nn.Module:
    card = json.loads((out / "config.json").read_text())
    file = str(out / "model.safetensors")
    model: nn.Module = timm.create_model(
        card["architecture"], num_classes=0, checkpoint_path=file, **card["model_args"]
    )
    return model.eval()


def test_the_file_holds_timms_names_without_head_and_mask_token(make_run: Run, tiny: Backbone) -> None:
    run = make_run(tiny)
    out = Path(export(settings(run))["out"])
    names = load_file(out / "model.safetensors").keys()
    assert names == timm.create_model(TINY, num_classes=0).state_dict().keys()
    assert not [name for name in names if name.startswith("head") or "mask_token" in name]
    assert (out / "run_config.yaml").read_text() == (run / "config.yaml").read_text()


def test_timm_loads_the_file_by_architecture_and_path(make_run: Run, tiny: Backbone) -> None:
    out = Path(export(settings(make_run(tiny)))["out"])
    model = timm.create_model(TINY, num_classes=0, checkpoint_path=str(out / "model.safetensors"))
    assert_same_features(model, tiny)


@needs_folders
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_384"])
def test_timm_loads_the_folder_with_its_preprocessing(
    make_run: Run, untrained: Callable[..., Backbone], name: str
) -> None:
    backbone = untrained(name)
    out = Path(export(settings(make_run(backbone)))["out"])
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert_same_features(model, backbone)
    wanted = timm.data.resolve_model_data_config(model)
    assert tuple(wanted["input_size"]) == (3, backbone.image_size, backbone.image_size)
    assert (tuple(wanted["mean"]), tuple(wanted["std"])) == (backbone.mean, backbone.std)
    assert (wanted["crop_pct"], wanted["crop_mode"]) == (1.0, "squash")
    assert wanted["interpolation"] == "bicubic"


@pytest.mark.parametrize("other_size", [160, 224])
def test_the_folder_runs_at_other_sizes_as_the_run_does(
    make_run: Run, tiny: Backbone, other_size: int
) -> None:
    model = load_as_the_config_says(Path(export(settings(make_run(tiny)))["out"]))
    pixels = torch.randn(1, 3, other_size, other_size)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), tiny(pixels).cls, rtol=0, atol=1e-5)


def test_a_shape_that_timm_has_no_name_for_is_exported_with_its_arguments(
    make_run: Run, untrained: Callable[..., Backbone], exporter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ViT-Ti of DINOv2's shape: patch 14, layer scale, 518 px, which would take the comparison seconds."""
    backbone = untrained("dinov2_vitt14", pos_embed="timm")
    compared = {"tolerance": 0.0, "max_difference": 0.0, "max_difference_resized": 0.0, "resized_to": 252}
    monkeypatch.setattr(exporter, "compare", lambda *_: compared)
    out = Path(export(settings(make_run(backbone, "dinov2_vitt14")))["out"])
    card = json.loads((out / "config.json").read_text())
    assert card["model_args"].items() >= {"patch_size": 14, "img_size": 518}.items()
    assert card["backbone"] == {"name": "dinov2_vitt14", "pos_embed": "auto"}
    pixels = torch.randn(1, 3, 56, 70, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = load_as_the_config_says(out)(pixels)
        torch.testing.assert_close(found, backbone(pixels).cls, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_a_trunk_of_other_channels_keeps_them(
    make_run: Run, untrained: Callable[..., Backbone], channels: int
) -> None:
    backbone = untrained("test_vit", in_chans=channels)
    out = Path(export(settings(make_run(backbone)))["out"])
    assert_same_features(load_as_the_config_says(out), backbone)
    if reads_folders():
        assert_same_features(timm.create_model(f"local-dir:{out}", pretrained=True), backbone)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224"])
def test_a_trunk_of_the_eva_family_is_exported(
    make_run: Run, untrained: Callable[..., Backbone], name: str
) -> None:
    backbone = untrained(name)
    assert_same_features(load_as_the_config_says(Path(export(settings(make_run(backbone)))["out"])), backbone)


def test_other_resizing_of_position_embeddings_is_measured_and_said(
    make_run: Run, untrained: Callable[..., Backbone], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = export(settings(make_run(untrained("test_vit", pos_embed="dinov2"))))
    assert found["max_difference"] <= 1e-5 < found["max_difference_resized"]
    assert "timm's own resizing of position embeddings" in caplog.text
    assert f"{found['max_difference_resized']:.1e}" in (Path(found["out"]) / "README.md").read_text()


def test_the_code_in_the_card_runs_and_gives_the_features(
    make_run: Run, tiny: Backbone, card_code: Any, as_a_stranger: Any
) -> None:
    out = Path(export(settings(make_run(tiny)))["out"])
    folder, file = card_code(out)
    block = folder if reads_folders() else f"import timm\n{file}features = model(images)"
    both = f"{block}\nby_folder = features\n{file}\nby_file = model(images)"
    given = images(tiny, n=2)
    for found in as_a_stranger(out, both, given, ["by_folder", "by_file"]):
        torch.testing.assert_close(found, tiny(given).cls, rtol=0, atol=1e-5)
