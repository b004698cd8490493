"""Any model reference to a plain backbone: a timm name, a weights file, a run, an export."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from essa_dist import runfolder
from essa_dist.adapters import AdapterConfig, build_adapter
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.backbones.weights import misfits, other_trunk, parameters_sha256, read_state
from essa_dist.errors import UsageError, WeightsError

WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1536: "giant"}


def load_model(ref: str) -> Backbone:
    """The model that ``ref`` names: eval mode, fp32, on the CPU, nothing trainable, adapters merged.

    ``ref``: a run folder (its teacher; with the prefix ``student:`` its student), an export folder, a weights file
    of timm's names, or a timm model name, optionally ``name@weights file``.
    Raises UsageError or WeightsError naming the reference and what it could have been.
    """
    student = ref.startswith("student:")
    path = Path(ref.removeprefix("student:")).expanduser()
    if runfolder.is_run(path):
        backbone = _from_run(path, "student" if student else "teacher")
    elif student:
        raise UsageError(f"model={ref}: only a run folder has a student, and {path} is not one")
    elif path.is_dir():
        backbone = _from_export(path)
    elif path.is_file():
        backbone = build_backbone(
            BackboneConfig(name=guess_architecture(read_state(path)), weights=str(path))
        )
    else:
        name, _, weights = ref.partition("@")
        if "/" in name or Path(name).suffix in {".safetensors", ".pth", ".pt", ".bin"}:
            raise UsageError(
                f"model={ref} is not there: give a timm name, a weights file, a run or an export folder"
            )
        backbone = build_backbone(BackboneConfig(name=name, weights=weights or "auto"))
    return backbone.eval().requires_grad_(False)


def base_model(run: Path) -> Backbone:
    """The model that a run started from, as ``load_model`` returns it."""
    return _base(_config(run)).eval().requires_grad_(False)


def _config(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((run / runfolder.CONFIG).read_text())
    return config


def _base(config: dict[str, Any]) -> Backbone:
    return build_backbone(BackboneConfig(**config["backbone"]), seed=config["seed"])


def _from_run(run: Path, branch: str) -> Backbone:
    checkpoints = runfolder.committed_checkpoints(run)
    if not checkpoints:
        raise UsageError(
            f"run {run} has no complete checkpoint: let it reach one (checkpoint.every), or resume it"
        )
    config = _config(run)
    backbone = _base(config)
    state = json.loads((checkpoints[-1] / "state.json").read_text())
    if wrong := other_trunk(state, parameters_sha256(backbone)):
        raise WeightsError(f"checkpoint {checkpoints[-1]} was {wrong}")
    adapter = build_adapter(TypeAdapter(AdapterConfig).validate_python(config["adapter"]))
    adapter.inject(backbone, seed=config["seed"])
    tensors = load_file(checkpoints[-1] / f"{branch}.safetensors")
    tensors |= load_file(checkpoints[-1] / "buffers.safetensors")
    _fill(backbone, tensors, checkpoints[-1])
    adapter.merge(backbone)
    return backbone


@torch.no_grad()
def _fill(backbone: Backbone, tensors: dict[str, Tensor], checkpoint: Path) -> None:
    """Put the checkpoint's trunk tensors into the injected backbone: every trained one and every buffer."""
    saved = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    own: dict[str, Tensor] = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    own |= dict(backbone.named_buffers())
    wrong = misfits(own, saved, here="this model")
    if wrong:
        raise UsageError(f"checkpoint {checkpoint} does not fit the run's own config.yaml: {wrong}")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _from_export(folder: Path) -> Backbone:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UsageError(
            f"model={folder} is neither a run folder nor an export (config.json and model.safetensors)"
        )
    card = yaml.safe_load(config.read_text())  # JSON is YAML
    made_as = card.get("backbone") or {"name": card["architecture"]}
    return build_backbone(BackboneConfig(**made_as, weights=str(weights)))


def guess_architecture(state: dict[str, Tensor]) -> str:
    """The released timm architecture whose width, patch size and tokens a state dict of timm names has.

    Raises UsageError when it has none; give the name then, as ``name@file``.
    """
    patch = state.get("patch_embed.proj.weight")
    if patch is None or patch.shape[0] not in WIDTHS:
        raise UsageError("the weights file fits no known ViT: name its architecture as model=timm_name@file")
    width, size = WIDTHS[patch.shape[0]], patch.shape[-1]
    if "blocks.0.ls1.gamma" in state and size == 14:
        registers = "_reg4" if {"reg_token", "register_tokens"} & state.keys() else ""
        return f"vit_{width}_patch14{registers}_dinov2"
    return f"vit_{width}_patch{size}_224"
