"""The demo in small: the same five steps, in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from essa_dist import pack
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.cli.results import to_text
from essa_dist.demo import DemoConfig, demo
from essa_dist.evaluation import evaluate_model
from essa_dist.export.models import load_model
from essa_dist.settings import load


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """Two classes that differ in colour, in three splits."""
    rng = np.random.default_rng(0)
    for split, count in (("unlabelled", 8), ("train", 12), ("test", 10)):
        for name, base in (("red", (160, 60, 60)), ("blue", (60, 60, 160))):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-40, 40, (32, 32, 3))
                pixels = (np.array(base) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}{i}.png")
    pack(str(tmp_path / "images"), out=str(tmp_path / "packed"))
    return str(tmp_path / "packed")


def test_the_demo_evaluates_adapts_exports_and_reports(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []  # the model of each evaluation

    def spy(backbone: Any, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(parameters_sha256(backbone))
        return evaluate_model(backbone, *args, **kwargs)

    monkeypatch.setattr("essa_dist.demo.evaluate_model", spy)
    words = [
        f"out={tmp_path / 'run'}",
        f"data.train={labelled}:unlabelled",
        f"bank={labelled}",
        f"test={labelled}",
        "duration=3",
        "seed=1",
        "batch_size=4",
        "threads=1",
        "backbone.name=test_vit",
        "backbone.weights=random",
        "data.workers=0",
        "data.crops.global_size=64",
        "data.crops.local_size=32",
    ]
    result = demo(load(DemoConfig, Path(__file__).parents[1] / "configs" / "demo.yaml", words))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    promised = {
        "knn_before", "knn_after", "linear_before", "linear_after",
        "trainable_parameters", "checkpoint_bytes", "seconds", "img_per_s",
    }  # fmt: skip
    assert promised <= summary.keys()
    assert all(isinstance(summary[key], int | float) for key in promised)
    assert {(row["protocol"], row["image_size"]) for row in summary["rows"]} >= {("knn", 224), ("linear", 64)}
    assert summary["knn_before"] == pytest.approx(summary["rows"][0]["before"]["balanced_accuracy"], abs=1e-6)
    # "Before" is the very trunk that was adapted, also where it is random.
    state = json.loads((tmp_path / "run/checkpoints/step_00000003/state.json").read_text())
    assert evaluated[0] == state["trunk_sha256"] != evaluated[-1]
    printed = to_text("demo", result)
    low, high = (100 * x for x in summary["rows"][0]["after"]["interval"])
    assert f"{100 * summary['knn_after']:.1f} [{low:.1f}, {high:.1f}]" in printed
    assert f"{summary['trainable_parameters']:,}" in printed
    assert max(map(len, printed.splitlines())) <= 120
    page = Path(result["report"]).read_text()
    assert f"{100 * summary['knn_after']:.1f}" in page
    plain = timm.create_model(
        "test_vit",
        num_classes=0,
        dynamic_img_size=True,
        checkpoint_path=str(Path(result["export"]) / "model.safetensors"),
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(
        plain.forward_features(images)[:, 0], load_model(str(tmp_path / "run"))(images).cls, rtol=0, atol=1e-5
    )
