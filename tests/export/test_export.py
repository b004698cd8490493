"""Promises of every export: the features are the model's, the folder is whole or absent, the card says what is so."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from essa_dist.adapters import inject_adapter
from essa_dist.adapters.vpt import VPTConfig
from essa_dist.backbones import Backbone, Features
from essa_dist.errors import EssaError, UsageError
from essa_dist.export import ExportConfig, export, timm
from essa_dist.export.compare import compare
from essa_dist.export.interface import Subject
from essa_dist.export.models import load_model
from essa_dist.export.record import adapter_bytes

TINY = "test_vit"
FILES = {"README.md", "config.json", "model.safetensors", "run_config.yaml"}
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(untrained: Callable[..., Backbone]) -> Backbone:
    return untrained(TINY)


def settings(run: Path, **others: Any) -> ExportConfig:
    return ExportConfig(run=str(run), out=str(run.parent / "out"), **others)


def test_the_result_says_what_was_written(make_run: Run, tiny: Backbone) -> None:
    found = export(settings(make_run(tiny)))
    out = Path(found["out"])
    assert (found["format"], found["architecture"], found["adapter"]) == ("timm", TINY, "apla")
    assert found["files"] == {path.name: path.stat().st_size for path in out.iterdir()}
    assert found["files"].keys() == FILES
    assert found["parameters"] == sum(p.numel() for p in tiny.vit.parameters())
    assert found["model_bytes"] == 4 * found["parameters"]
    assert found["max_difference"] <= found["tolerance"]
    assert (found["step"], found["base_weights_sha256"], found["branch"]) == (420, "a" * 64, "teacher")
    assert found["sha256"] == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(json.dumps(found)) == found


def test_every_format_can_be_asked_for(exporter: ModuleType) -> None:
    assert set(get_args(ExportConfig.model_fields["format"].annotation)) == exporter.FORMATS.keys()


def test_the_card_states_origin_training_and_figures(make_run: Run, tiny: Backbone) -> None:
    card = (Path(export(settings(make_run(tiny)))["out"]) / "README.md").read_text()
    for fact in (
        "adapted to blood",
        "`apla`",
        "420 steps",
        "a" * 64,
        "b" * 64,
        "c" * 64,
        "Apache-2.0",
        "torch 2.13.0, timm 1.0.31",
        "| seed | 7 |",
        "| knn_after_224 | knn | 224 px, crop 1 | 0.875 (0.850 to 0.900) | 0.880 | 480 / 800 |",
        "| knn_after | 0.875 |",
        "`images` is [B, 3, 160, 160]",
        "1e-05 is allowed",
        "not a medical device",
    ):
        assert fact in card, fact
    assert "somewhere" not in card  # paths of the machine that trained are of no use to a reader


def test_a_run_that_recorded_little_is_exported_and_says_unknown(make_run: Run, tiny: Backbone) -> None:
    found = export(settings(make_run(tiny, complete=False)))
    card = (Path(found["out"]) / "README.md").read_text()
    assert found["base_weights_sha256"] is None
    assert found["adapter_bytes"] is None
    assert "sha256 `unknown`" in card
    assert "## Measured" not in card


def test_a_model_that_is_no_run_is_exported_and_said_to_be_unadapted(
    tiny: Backbone, write: Callable[..., Any]
) -> None:
    out, found = write(tiny, "timm")
    assert {path.name for path in out.iterdir()} == FILES - {"run_config.yaml"}
    assert (found["branch"], found["adapter"], found["step"]) == (None, None, None)
    card = (out / "README.md").read_text()
    assert "No adaptation: these are the weights of `model`" in card
    assert "adapter" not in card.replace("adapter-only", "")


def test_the_card_compares_the_adapters_size_with_the_models(make_run: Run, tiny: Backbone) -> None:
    """5 rows of 3 numbers trained, their 5 indices; neither heads nor the other branch count."""
    run = make_run(tiny)
    checkpoint = run / "checkpoints" / "step_00000420"
    trained = {"backbone.vit.x.weight": torch.zeros(5, 3), "dino_head.last.weight": torch.zeros(70)}
    save_file(trained, checkpoint / "teacher.safetensors")
    save_file(trained | {"backbone.more": torch.zeros(9)}, checkpoint / "student.safetensors")
    buffers = {"backbone.vit.x.rows": torch.arange(5), "center": torch.zeros(70)}
    save_file(buffers, checkpoint / "buffers.safetensors")
    found = export(settings(run))
    assert found["adapter_bytes"] == 5 * 3 * 4 + 5 * 8
    assert (
        adapter_bytes(checkpoint, "teacher", {"vit.x.rows"}) == 5 * 3 * 4
    )  # a buffer that every such trunk has
    card = (Path(found["out"]) / "README.md").read_text()
    assert f"is 100 bytes in fp32 (one branch); the whole model is {found['model_bytes']:,}" in card


def test_the_card_states_how_channels_were_made(
    make_run: Run, untrained: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = untrained(TINY, in_chans=1)
    monkeypatch.setattr(grey, "channel_rule", "3 channels summed to 1", raising=False)
    found = export(settings(make_run(grey)))
    card = (Path(found["out"]) / "README.md").read_text()
    assert "`images` is [B, 1, 160, 160]" in card
    assert "Input channels: 3 channels summed to 1" in card
    assert found["channels"] == 1


def test_the_branch_asked_for_is_loaded(
    make_run: Run, tiny: Backbone, exporter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = make_run(tiny), []
    monkeypatch.setattr(exporter, "load_model", lambda ref: asked.append(ref) or tiny)
    export(settings(run))
    export(settings(run, branch="student", overwrite=True))
    checkpoint = run / "checkpoints" / "step_00000420"
    assert asked == [str(checkpoint), f"student:{checkpoint}"]


def test_the_files_can_be_read_by_whom_the_umask_allows(make_run: Run, tiny: Backbone) -> None:
    run = make_run(tiny)
    (run.parent / "ordinary").touch()
    modes = {path.stat().st_mode for path in Path(export(settings(run))["out"]).iterdir()}
    assert modes == {(run.parent / "ordinary").stat().st_mode}


@pytest.mark.parametrize("form", ["timm", "huggingface", "dinov2"])
def test_an_adapter_that_cannot_be_merged_is_refused_by_formats_of_plain_weights(
    form: str, untrained: Callable[..., Backbone], write: Callable[..., Any], tmp_path: Path
) -> None:
    backbone = untrained(TINY)
    inject_adapter(backbone, VPTConfig(tokens=2), seed=0)
    backbone.adapter_settings = {"kind": "vpt", "tokens": 2}
    with pytest.raises(UsageError, match=r"adapter vpt can't be merged .* format=.*onnx.*essa"):
        write(backbone, form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"format": "timm", "image_size": 96}, "image_size is for format=onnx"),
        ({"format": "onnx", "image_size": 100}, "not a multiple of the patch size 16"),
        ({"format": "onnx", "image_size": -16}, "not a multiple of the patch size 16"),
    ],
)
def test_an_image_size_that_cannot_be_had_is_refused(
    make_run: Run, tiny: Backbone, others: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(settings(make_run(tiny), **others))


# The comparison.


def off_by(change: Callable[[Features], Features]) -> Callable[[Backbone], SimpleNamespace]:
    """A format whose reader is the backbone itself but for ``change``."""

    def form(backbone: Backbone) -> SimpleNamespace:
        return SimpleNamespace(
            load=lambda folder: [backbone, lambda images: change(backbone(images))],
            TOLERANCE=1e-5,
            RESIZING="",
            READER="another program",
            LIBRARY="torch",
        )

    return form


def damage(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] += value
    return tensor


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: Features(damage(f.cls, 1e-3), f.patches), id="class token"),
        pytest.param(lambda f: Features(f.cls, damage(f.patches, 1e-3)), id="a patch token"),
        pytest.param(lambda f: Features(damage(f.cls, float("nan")), f.patches), id="nan"),
        pytest.param(lambda f: Features(f.cls, f.patches[:, 1:]), id="a token missing"),
        pytest.param(lambda f: f if len(f.cls) > 1 else Features(f.cls + 1, f.patches), id="single images"),
        pytest.param(lambda f: f if len(f.cls) < 2 else Features(f.cls + 1, f.patches), id="several images"),
    ],
)
def test_a_difference_anywhere_is_found(
    change: Callable[[Features], Features], small: Callable[..., Backbone], tmp_path: Path
) -> None:
    backbone = small("plain")
    subject = Subject(backbone, "x", {}, 16)
    same: Any = off_by(lambda features: features)(backbone)
    assert compare(same, tmp_path, subject) == {"tolerance": 1e-5, "max_difference": 0.0}
    other: Any = off_by(change)(backbone)
    with pytest.raises(EssaError, match="another program computes other features"):
        compare(other, tmp_path, subject)


@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_features_that_differ_are_an_error_and_leave_nothing_behind(
    make_run: Run, tiny: Backbone, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_damaged(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        state["norm.bias"] = state["norm.bias"] + value
        save_file(state, path, metadata)

    monkeypatch.setattr(timm, "save_file", save_damaged)
    run = make_run(tiny)
    with pytest.raises(EssaError, match="plain timm computes other features"):
        export(settings(run))
    assert [path.name for path in run.parent.iterdir()] == ["run"]


# The folder.


def test_a_failed_export_keeps_the_one_it_was_to_replace(
    make_run: Run, tiny: Backbone, exporter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tiny)
    first = export(settings(run))
    monkeypatch.setattr(exporter, "model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(settings(run, overwrite=True))
    assert {path.name for path in run.parent.iterdir()} == {"run", "out"}
    assert Path(first["out"], "README.md").is_file()


def test_an_existing_out_is_refused_and_replaced_only_if_it_is_an_export(
    make_run: Run, tiny: Backbone
) -> None:
    run = make_run(tiny)
    export(settings(run))
    with pytest.raises(UsageError, match="exists: choose another folder, or overwrite=true"):
        export(settings(run))
    export(settings(run, overwrite=True))
    (run.parent / "out" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"not an export \(it has thesis.tex\)"):
        export(settings(run, overwrite=True))
    assert (run.parent / "out" / "thesis.tex").exists()


def test_a_folder_of_another_program_is_never_replaced(make_run: Run, tiny: Backbone) -> None:
    """A model from a hub has just the files that an export has, but not its card."""
    run = make_run(tiny)
    (run.parent / "out").mkdir()
    (run.parent / "out" / "README.md").write_text("# A model from a hub\n")
    (run.parent / "out" / "model.safetensors").write_text("precious")
    with pytest.raises(UsageError, match=r"not an export \(its README.md is not one of this library's\)"):
        export(settings(run, overwrite=True))


def test_an_export_in_one_format_is_replaced_by_one_in_another(
    tiny: Backbone, write: Callable[..., Any]
) -> None:
    folder, _ = write(tiny, "timm")
    folder.rename(folder.with_name("essa"))
    out, _ = write(tiny, "essa", overwrite=True)
    assert json.loads((out / "config.json").read_text())["format"] == "essa"


def test_a_file_in_the_place_of_out_is_never_replaced(make_run: Run, tiny: Backbone) -> None:
    run = make_run(tiny)
    (run.parent / "out").write_text("precious")
    with pytest.raises(UsageError, match="not an export"):
        export(settings(run, overwrite=True))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run folder nor an export"):
        export(settings(tmp_path))


@pytest.mark.parametrize("form", ["timm", "huggingface", "dinov2", "essa"])
def test_the_folder_is_itself_a_model_reference(
    form: str, untrained: Callable[..., Backbone], write: Callable[..., Any]
) -> None:
    backbone = untrained("vit_tiny_patch16_224")
    out, _ = write(backbone, form)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(out))(images), backbone(images), rtol=0, atol=1e-5)
