"""Export a run as a folder that plain timm loads, with a model card.

The folder is written beside its place, loaded again and compared, and only then renamed: it is whole or absent.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from essa_dist.backbones import Backbone
from essa_dist.backbones.weights import file_sha256
from essa_dist.errors import UsageError
from essa_dist.export.card import Record, model_card, read_record
from essa_dist.export.compare import compare
from essa_dist.export.models import load_model
from essa_dist.runfolder import CONFIG, is_run
from essa_dist.settings import Config

WEIGHTS, MODEL_CONFIG, RUN_CONFIG, CARD = "model.safetensors", "config.json", "run_config.yaml", "README.md"
FILES = (WEIGHTS, MODEL_CONFIG, RUN_CONFIG, CARD)


class ExportConfig(Config):
    """One run, written for another program."""

    run: str
    """Run folder, as written by adapt."""
    out: str
    """Folder to write; refused if it exists."""
    format: Literal["timm"] = "timm"
    """timm: safetensors under timm's parameter names, config.json and a model card."""
    branch: Literal["teacher", "student"] = "teacher"
    """The teacher is the moving average of the student and usually the better model."""
    overwrite: bool = False
    """Replace an earlier export at out; a folder that holds anything else is never deleted."""


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the folder; its path, files (bytes), parameters, hashes and what the comparison found.

    Raises ``UsageError`` for a ``run`` that is none or an ``out`` that may not be replaced, ``EssaError`` if the
    features that plain timm computes from the folder differ from the run's.
    """
    run, out = Path(config.run), Path(config.out)
    if not is_run(run):
        raise UsageError(
            f"run={run} is not a run folder ({CONFIG} and checkpoints/): give the out of an adapt run"
        )
    _refuse_existing(out, config.overwrite)
    backbone = load_model(f"student:{run}" if config.branch == "student" else str(run)).eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        result = _write(beside, run, config.branch, backbone)
        _replace(out, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # gone already if all went well
    return {"out": str(out), "format": config.format, **result}


def _write(folder: Path, run: Path, branch: str, backbone: Backbone) -> dict[str, Any]:
    folder.mkdir()
    record = read_record(run)
    settings = timm_config(backbone) | {"backbone": _own_name(record)}
    state = {name: tensor.detach().contiguous() for name, tensor in backbone.vit.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / MODEL_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(run / CONFIG, folder / RUN_CONFIG)
    result: dict[str, Any] = {
        "branch": branch,
        "architecture": settings["architecture"],
        "step": record.state.get("step"),
        "parameters": sum(parameter.numel() for parameter in backbone.vit.parameters()),
        "sha256": file_sha256(folder / WEIGHTS),
        "base_weights_sha256": record.state.get("weights_sha256"),
        "data_manifest_sha256": record.state.get("data_manifest_sha256"),
        **compare(folder / WEIGHTS, backbone, settings),
    }
    (folder / CARD).write_text(model_card(record, settings, result), encoding="utf-8")
    return result | {"files": {name: (folder / name).stat().st_size for name in FILES}}


def timm_config(backbone: Backbone) -> dict[str, Any]:
    """``config.json`` in the layout of timm's hub: the architecture, how it differs from timm's, and the input."""
    shipped: dict[str, Any] = getattr(backbone.vit, "pretrained_cfg", {})
    return {
        "architecture": backbone.name.split(".")[0],
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        "global_pool": "token",
        # timm takes the size of most architectures from its own registry, which a folder does not consult.
        "model_args": {**_unlike_timm(backbone), "img_size": backbone.image_size, "dynamic_img_size": True},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, backbone.image_size, backbone.image_size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the whole image, as evaluation shows it
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": shipped.get("first_conv", "patch_embed.proj"),
            "classifier": shipped.get("classifier", "head"),
        },
    }


def _own_name(record: Record) -> dict[str, Any]:
    """What this library needs besides to build the same backbone; timm passes over it."""
    backbone = record.config.get("backbone") or {}
    return {name: backbone[name] for name in ("name", "pos_embed") if name in backbone}


def _unlike_timm(backbone: Backbone) -> dict[str, Any]:
    """Arguments that timm's model of this name needs to get the backbone's shape; mostly none."""
    plain: Any
    with torch.device("meta"):  # costs no memory
        plain = timm.create_model(backbone.name, pretrained=False, num_classes=0)
    scaled = [not isinstance(vit.blocks[0].ls1, nn.Identity) for vit in (plain, backbone.vit)]
    differing = {
        "patch_size": (plain.patch_embed.patch_size[0], backbone.patch_size, backbone.patch_size),
        "init_values": (scaled[0], scaled[1], 1.0 if scaled[1] else None),  # the weights replace the number
        "global_pool": (plain.global_pool, "token", "token"),
    }
    return {name: value for name, (theirs, ours, value) in differing.items() if theirs != ours}


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise UsageError(f"out={out} exists: choose another folder, or overwrite=true to replace an export")
    foreign = (
        "a file"
        if out.is_file()
        else ", ".join(sorted({path.name for path in out.iterdir()} - set(FILES))[:3])
    )
    if foreign:
        raise UsageError(
            f"out={out} is not an export (it has {foreign}), so it won't be deleted: choose another folder"
        )


def _replace(out: Path, beside: Path) -> None:
    old = beside.with_suffix(".old")
    if out.exists():
        out.rename(old)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
