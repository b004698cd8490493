"""Small models of every shape that exports tell apart, run folders around them, and a stranger to load the result."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone

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
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "scaled": ("vit_small_patch14_dinov2", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", {}),
    "grey": ("vit_tiny_patch16_224", {"in_chans": 1}),
    "dinov3": ("vit_small_patch16_dinov3", {"embed_dim": 48}),
    "dinov3_biased": ("vit_small_patch16_dinov3_qkvb", {"embed_dim": 48}),
    "dinov3_gated": ("vit_small_plus_patch16_dinov3", {"embed_dim": 48}),
    "eva02": ("eva02_tiny_patch14_224", {"embed_dim": 48}),
}


@torch.no_grad()
def shaken(backbone: Backbone) -> Backbone:
    """Weights that no other construction gives: layer scales, tokens and position embeddings included."""
    random = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return backbone.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def untrained() -> Callable[..., Backbone]:
    """A model that timm has a name for, so that its name alone builds it again."""
    return lambda name, **settings: shaken(
        build_backbone(BackboneConfig(name=name, weights="random", **settings))
    )


@pytest.fixture(scope="session")
def small() -> Callable[..., Backbone]:
    """One of ``SHAPES``, 16 px with patches of 4 px, two blocks of three heads."""

    def make(shape: str, **others: Any) -> Backbone:
        name, arguments = SHAPES[shape]
        size = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 16, "patch_size": 4}
        vit = timm.create_model(
            name, num_classes=0, global_pool="", dynamic_img_size=True, **size | arguments | others
        )
        return shaken(Backbone(vit, name=name, pos_embed="dinov2" if "dinov2" in name else "timm"))

    return make


@pytest.fixture(scope="session")
def adapted() -> Callable[..., Backbone]:
    """The model with an adapter in it that has moved from where it started, as a run of ``seed`` 11 leaves it."""

    def make(backbone: Backbone, config: AdapterConfig) -> Backbone:
        inject_adapter(backbone, config, seed=11)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
        backbone.adapter_settings, backbone.adapter_seed = config.model_dump(mode="json"), 11
        return backbone.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def exporter() -> ModuleType:
    """The module; its name in the package is that of the function."""
    return importlib.import_module("essa_dist.export.export")


@pytest.fixture
def make_run(tmp_path: Path, exporter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A run folder whose model is the given one."""

    def make(backbone: Backbone, name: str | None = None, *, complete: bool = True) -> Path:
        monkeypatch.setattr(exporter, "load_model", lambda ref: backbone)
        run = tmp_path / "run"
        checkpoint = run / "checkpoints" / "step_00000420"
        checkpoint.mkdir(parents=True)
        (run / "config.yaml").write_text(CONFIG % (name or backbone.name))
        if complete:
            (run / "evaluation").mkdir()
            (run / "evaluation" / "knn_after_224.json").write_text(json.dumps(EVALUATION))
            (run / "summary.json").write_text(json.dumps({"knn_after": 0.875, "seconds": 512.5}))
            (checkpoint / "state.json").write_text(json.dumps(STATE))
        (checkpoint / "COMMITTED").touch()
        return run

    return make


@pytest.fixture
def write(
    tmp_path: Path, exporter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Exports a model that is no run; the folder and the result."""

    def export(backbone: Backbone, form: str, **settings: Any) -> tuple[Path, dict[str, Any]]:
        monkeypatch.setattr(exporter, "load_model", lambda ref: backbone)
        config = exporter.ExportConfig(run="a/model", out=str(tmp_path / form), format=form, **settings)
        return tmp_path / form, exporter.export(config)

    return export


@pytest.fixture(scope="session")
def card_code() -> Callable[[Path], list[str]]:
    """The blocks of Python in a folder's card."""
    return lambda folder: re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="session")
def as_a_stranger() -> Callable[..., list[Tensor]]:
    """Runs code of a card in the folder, in a process without this library's exports; the tensors it calls ``names``."""

    def run(
        folder: Path, code: str, images: Tensor, names: list[str], *, torch_too: bool = True
    ) -> list[Tensor]:
        given = folder / "given.npy"
        np.save(given, images.numpy())
        lines = [
            "import essa_dist  # it cures torchvision where that can't be imported, and brings nothing else",
            "import sys, numpy as np",
            "images = np.load('given.npy')",
            "import torch; images = torch.from_numpy(images); torch.set_grad_enabled(False)"
            if torch_too
            else "",
            code,
            "assert 'essa_dist.export' not in sys.modules",
            *(f"np.save('got_{name}.npy', np.asarray({name}))" for name in names),
        ]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [torch.from_numpy(np.load(folder / f"got_{name}.npy")) for name in names]

    return run
