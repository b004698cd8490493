"""Run folders written by hand, whole or in part, with numbers that a test can find again on the page."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from essa_dist import adapt, pack

CLASSES = ["basophil", "lymphocyte", "platelet"]
CONFIG = {
    "seed": 0,
    "batch_size": 4,
    "backbone": {"name": "vit_tiny_patch16_224"},
    "adapter": {"kind": "apla"},
}


def result(protocol: str, size: int, value: float, **more: Any) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "model": "m",
        "image_size": size,
        "crop": 1.0,
        "accuracy": value,
        "balanced_accuracy": value,
        "interval": [value - 0.02, value + 0.03],
        "n_bank": 33,
        "n_test": 44,
        "classes": CLASSES,
        "confusion": [[8, 1, 1], [2, 6, 2], [0, 0, 10]],
        "seconds": 1.0,
    } | more


def summary() -> dict[str, Any]:
    rows = [
        {
            "protocol": protocol,
            "image_size": size,
            "crop": 1.0,
            "before": result(protocol, size, before),
            "after": result(protocol, size, before + 0.111, confusion=[[9, 1, 0], [1, 8, 1], [0, 1, 9]]),
        }
        for protocol, size, before in (("knn", 160, 0.612), ("knn", 224, 0.701), ("linear", 224, 0.803))
    ]
    facts = {
        "trainable_parameters": 444672,
        "steps": 120,
        "seconds": 75.0,
        "adapter": "apla",
        "batch_size": 4,
    }
    return facts | {"rows": rows, "versions": {"torch": "9.8.7"}, "commit": "abc1234"}


def metrics(steps: int = 60) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": 5.0 - step / 100,
            "dino_global": 2.0,
            "dino_local": 3.0 - step / 100,
            "koleo": None,
            "lr": step * 1e-5,
            "ema_momentum": 0.99 + step * 1e-5,
            "teacher_temp": 0.02,
            "img_per_s": 50.0,
            "data_wait": 0.01,
            "rankme": 100.0 if step % 10 == 0 else None,
        }
        for step in range(steps)
    ]


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """The makers of records: ``fake.config``, ``fake.metrics(steps)``, ``fake.summary()``, ``fake.result(...)``."""
    return SimpleNamespace(config=CONFIG, metrics=metrics, summary=summary, result=result, classes=CLASSES)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """``write_run(config=..., metrics=..., summary=..., evaluation={name: result})``; what isn't given isn't written."""

    def write(**parts: Any) -> Path:
        run = tmp_path / "runs" / "demo"
        (run / "evaluation").mkdir(parents=True)
        if "config" in parts:
            (run / "config.yaml").write_text(yaml.safe_dump(parts["config"]))
        if "metrics" in parts:
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in parts["metrics"]))
        if "summary" in parts:
            (run / "summary.json").write_text(json.dumps(parts["summary"]))
        for name, value in parts.get("evaluation", {}).items():
            (run / "evaluation" / f"{name}.json").write_text(json.dumps(value))
        return run

    return write


@pytest.fixture(scope="session")
def adapted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ``adapt`` made (two steps, untrained weights from a file), with evaluations written by hand."""
    root = tmp_path_factory.mktemp("adapted")
    rng = np.random.default_rng(0)
    for place in range(24):
        folder = root / "images" / CLASSES[place % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{place:02d}.png")
    pack(str(root / "images"), out=str(root / "packed"), splits={"unlabelled": 0.5, "test": 0.5})
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(vit.state_dict(), root / "weights.safetensors")
    adapt(
        f"out={root / 'run'}",
        f"data.train={root / 'packed'}:unlabelled",
        "data.workers=0",
        "data.crops={global_size: 48, local_size: 32, n_local: 2}",
        "objective.head={prototypes: 32, hidden: 16, bottleneck: 8}",
        "backbone.name=vit_tiny_patch16_224",
        f"backbone.weights={root / 'weights.safetensors'}",
        "duration=2",
        "batch_size=4",
        "log_every=1",
        "precision=fp32",
        "device=cpu",
        "threads=1",
    )
    (root / "run" / "evaluation").mkdir(exist_ok=True)
    for side, value in (("before", 0.7), ("after", 0.8)):
        text = json.dumps(result("knn", 224, value))
        (root / "run" / "evaluation" / f"{side}_knn.json").write_text(text)
    return root / "run"
