"""The export's promises: plain timm computes the run's features, and a folder is whole or absent."""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.errors import EssaError, UsageError
from essa_dist.export import timm as exporter
from essa_dist.export.compare import reads_folders
from essa_dist.export.models import load_model
from essa_dist.export.timm import FILES, ExportConfig, export

TINY = "vit_tiny_patch16_224"
CONFIG = """\
backbone: {name: %s, pos_embed: auto}
adapter: {kind: apla, rank: null}
data: {train: somewhere/blood}
seed: 7
"""
STATE = {
    "step": 420,
    "weights_source": "embedded: tiny.safetensors",
    "weights_sha256": "a" * 64,
    "trunk_sha256": "b" * 64,
    "data_manifest_sha256": "c" * 64,
    "versions": {"torch": "2.13.0", "timm": "1.0.31"},
}
EVALUATION = {
    "protocol": "knn",
    "image_size": 224,
    "crop": 1.0,
    "balanced_accuracy": 0.875,
    "interval": [0.85, 0.9],
    "accuracy": 0.88,
    "n_bank": 480,
    "n_test": 800,
}

Run = Callable[..., Path]


def untrained(name: str) -> Backbone:
    """Weights that no other construction gives, layer scales and position embeddings included."""
    backbone = build_backbone(BackboneConfig(name=name, weights="random")).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.vit.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    return backbone


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return untrained(TINY)


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run folder whose model is the given one."""

    def make(backbone: Backbone, name: str = TINY, *, complete: bool = True) -> Path:
        monkeypatch.setattr(exporter, "load_model", lambda ref: backbone)
        run = tmp_path / "run"
        checkpoint = run / "checkpoints" / "step_00000420"
        checkpoint.mkdir(parents=True)
        (run / "config.yaml").write_text(CONFIG % name)
        if complete:
            (run / "evaluation").mkdir()
            (run / "evaluation" / "knn_after_224.json").write_text(json.dumps(EVALUATION))
            (run / "summary.json").write_text(json.dumps({"knn_after": 0.875, "seconds": 512.5}))
            (checkpoint / "state.json").write_text(json.dumps(STATE))
            (checkpoint / "COMMITTED").touch()
        return run

    return make


def settings(run: Path, **others: Any) -> ExportConfig:
    return ExportConfig(run=str(run), out=str(run.parent / "out"), **others)


def images(backbone: Backbone) -> torch.Tensor:
    size = backbone.image_size
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_features(model: torch.nn.Module, backbone: Backbone) -> None:
    torch.testing.assert_close(
        model.eval()(images(backbone)), backbone(images(backbone)).cls, rtol=0, atol=1e-5
    )


def test_the_result_says_what_was_written(make_run: Run, tiny: Backbone) -> None:
    found = export(settings(make_run(tiny)))
    out = Path(found["out"])
    assert (found["format"], found["architecture"]) == ("timm", TINY)
    assert found["files"] == {name: (out / name).stat().st_size for name in FILES}
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert found["parameters"] == 5_524_416
    assert found["max_difference"] <= 1e-5
    assert (found["step"], found["base_weights_sha256"], found["branch"]) == (420, "a" * 64, "teacher")
    assert found["sha256"] == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(json.dumps(found)) == found


def test_the_file_holds_timms_names_without_head_and_mask_token(make_run: Run, tiny: Backbone) -> None:
    out = Path(export(settings(make_run(tiny)))["out"])
    names = load_file(out / "model.safetensors").keys()
    assert names == timm.create_model(TINY, num_classes=0).state_dict().keys()
    assert not [name for name in names if name.startswith("head") or "mask_token" in name]
    assert (out / "run_config.yaml").read_text() == CONFIG % TINY


def test_timm_loads_the_file_by_architecture_and_path(make_run: Run, tiny: Backbone) -> None:
    out = Path(export(settings(make_run(tiny)))["out"])
    model = timm.create_model(TINY, num_classes=0, checkpoint_path=str(out / "model.safetensors"))
    assert_same_features(model, tiny)


@pytest.mark.skipif(not reads_folders(), reason="this timm does not know local-dir:")
@pytest.mark.parametrize("name", [TINY, "vit_tiny_patch16_384"])
def test_timm_loads_the_folder_with_its_preprocessing(make_run: Run, name: str) -> None:
    backbone = untrained(name)
    out = Path(export(settings(make_run(backbone, name)))["out"])
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
    run = make_run(tiny)
    out = Path(export(settings(run))["out"])
    card = json.loads((out / "config.json").read_text())
    file = str(out / "model.safetensors")
    model = timm.create_model(TINY, num_classes=0, checkpoint_path=file, **card["model_args"]).eval()
    pixels = torch.randn(1, 3, other_size, other_size)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), tiny(pixels).cls, rtol=0, atol=1e-5)


def test_a_shape_that_timm_has_no_name_for_is_exported_with_its_arguments(make_run: Run) -> None:
    """ViT-Ti of DINOv2's shape: patch 14, layer scale, 518 px; the card's own call must load it."""
    backbone = untrained("dinov2_vitt14")
    out = Path(export(settings(make_run(backbone, "dinov2_vitt14")))["out"])
    card = json.loads((out / "config.json").read_text())
    assert card["model_args"].items() >= {"patch_size": 14, "img_size": 518}.items()
    assert card["backbone"] == {"name": "dinov2_vitt14", "pos_embed": "auto"}
    model = timm.create_model(
        card["architecture"],
        num_classes=0,
        checkpoint_path=str(out / "model.safetensors"),
        **card["model_args"],
    )
    assert_same_features(model, backbone)


def test_other_resizing_of_position_embeddings_is_measured_and_said(
    make_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    name = "dinov2_vitt14"
    with caplog.at_level(logging.WARNING):
        found = export(settings(make_run(untrained(name), name)))
    assert found["max_difference"] <= 1e-5 < found["max_difference_resized"]
    assert "timm's own resizing of position embeddings" in caplog.text
    assert f"{found['max_difference_resized']:.1e}" in (Path(found["out"]) / "README.md").read_text()


def test_the_code_in_the_card_runs_and_gives_the_features(
    make_run: Run, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(export(settings(make_run(tiny)))["out"])
    folder, file = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    blocks = [folder, f"import timm\n{file}features = model(images)"] if reads_folders() else [file]
    monkeypatch.chdir(out)
    for block in blocks:
        names: dict[str, Any] = {"images": images(tiny)}
        exec(block, names)
        with torch.no_grad():
            torch.testing.assert_close(
                names["features"].detach(), tiny(names["images"]).cls, rtol=0, atol=1e-5
            )


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
        "not a medical device",
    ):
        assert fact in card, fact
    assert "somewhere" not in card  # paths of the machine that trained are of no use to a reader


def test_a_run_that_recorded_little_is_exported_and_says_unknown(make_run: Run, tiny: Backbone) -> None:
    found = export(settings(make_run(tiny, complete=False)))
    card = (Path(found["out"]) / "README.md").read_text()
    assert found["base_weights_sha256"] is None
    assert "sha256 `unknown`" in card
    assert "## Measured" not in card


def test_the_branch_asked_for_is_loaded(
    make_run: Run, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = make_run(tiny), []
    monkeypatch.setattr(exporter, "load_model", lambda ref: asked.append(ref) or tiny)
    export(settings(run))
    export(settings(run, branch="student", overwrite=True))
    assert asked == [str(run), f"student:{run}"]


@pytest.mark.parametrize("damage", [1e-3, float("nan")])
def test_features_that_differ_are_an_error_and_leave_nothing_behind(
    make_run: Run, tiny: Backbone, damage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_damaged(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        state["norm.bias"] = state["norm.bias"] + damage
        save(state, path, metadata)

    save = exporter.save_file
    monkeypatch.setattr(exporter, "save_file", save_damaged)
    run = make_run(tiny)
    with pytest.raises(EssaError, match="plain timm computes other features"):
        export(settings(run))
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_failed_export_keeps_the_one_it_was_to_replace(
    make_run: Run, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
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


def test_a_file_in_the_place_of_out_is_never_replaced(make_run: Run, tiny: Backbone) -> None:
    run = make_run(tiny)
    (run.parent / "out").write_text("precious")
    with pytest.raises(UsageError, match="not an export"):
        export(settings(run, overwrite=True))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        export(settings(tmp_path))


def test_the_folder_is_itself_a_model_reference(make_run: Run, tiny: Backbone) -> None:
    out = export(settings(make_run(tiny)))["out"]
    with torch.no_grad():
        found = load_model(out)(images(tiny)).cls
        torch.testing.assert_close(found, tiny(images(tiny)).cls, rtol=0, atol=1e-5)
