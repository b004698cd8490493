"""Run folders as ``adapt`` leaves them, made in no time."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from safetensors.torch import save_file

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.backbones.weights import file_sha256, parameters_sha256
from essa_dist.runfolder import MARKER


def run_folder(path: Path, adapter: dict[str, Any], *, step: int = 5) -> Path:
    """A run as ``adapt`` leaves it, its teacher trained; over timm's smallest ViT."""
    config = {"backbone": {"name": "test_vit", "weights": "random"}, "adapter": adapter, "seed": 7}
    backbone = build_backbone(BackboneConfig(**config["backbone"]), seed=7)
    state = {"step": step, "trunk_sha256": parameters_sha256(backbone), "weights_source": "random"}
    inject_adapter(backbone, TypeAdapter(AdapterConfig).validate_python(adapter), seed=7)
    trained = {
        f"backbone.{n}": p.detach() * 1.01 + step / 500
        for n, p in backbone.named_parameters()
        if p.requires_grad
    }
    checkpoint = path / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    buffers = {f"backbone.{n}": b for n, b in backbone.named_buffers()}
    for file, tensors in (("student", trained), ("teacher", trained), ("buffers", buffers)):
        save_file(tensors, checkpoint / f"{file}.safetensors")
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in checkpoint.iterdir()
    }
    (checkpoint / "state.json").write_text(json.dumps(state | {"files": files}))
    (checkpoint / MARKER).write_text("")
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path
