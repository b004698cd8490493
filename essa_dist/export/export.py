"""Export a model as a folder that other programs load, with a model card.

The folder is written beside its place, loaded again and compared, and only then renamed: it is whole or absent.
``FORMATS`` lists what can be written, one module each.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from essa_dist.adapters import label
from essa_dist.backbones import Backbone, BackboneConfig, build_architecture
from essa_dist.backbones.build import ALIASES
from essa_dist.backbones.position import DINOv2PositionEmbedding
from essa_dist.backbones.weights import file_sha256
from essa_dist.errors import UsageError
from essa_dist.export import dinov2, essa, huggingface, onnx, peft, timm
from essa_dist.export.card import TAG, model_card
from essa_dist.export.compare import compare
from essa_dist.export.interface import Format, Subject
from essa_dist.export.models import load_model
from essa_dist.export.record import Record, adapter_bytes, read_record
from essa_dist.export.saved import find_checkpoint, find_run
from essa_dist.runfolder import CONFIG, is_run
from essa_dist.settings import Config

RUN_CONFIG, CARD = "run_config.yaml", "README.md"
FORMATS: dict[str, Format] = {
    "timm": timm,
    "huggingface": huggingface,
    "dinov2": dinov2,
    "onnx": onnx,
    "peft": peft,
    "essa": essa,
}
FILES = {RUN_CONFIG, CARD}.union(*(form.FILES for form in FORMATS.values()))
"""All that an export may hold."""

NOT_ARCHITECTURE = {"weights", "allow_missing", "drop_path", "checkpoint_activations"}
"""Settings of a run's backbone that say nothing of the model that came out."""


class ExportConfig(Config):
    """One model, written for another program."""

    run: str
    """Run folder, as written by adapt, or one checkpoint in it; or any model reference, to write that in another format."""
    out: str
    """Folder to write; refused if it exists."""
    format: Literal["timm", "huggingface", "dinov2", "onnx", "peft", "essa"] = "timm"
    """timm; huggingface: transformers; dinov2: its hub's layout; onnx: a graph; peft: what was trained, as a
    LoRA folder; essa: with an adapter's own modules."""
    image_size: int | None = None
    """onnx: side in px of the images that the graph takes (null: the model's own)."""
    branch: Literal["teacher", "student"] = "teacher"
    """The teacher is the moving average of the student and usually the better model."""
    overwrite: bool = False
    """Replace an earlier export at out; a folder that holds anything else is never deleted."""


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the folder; its path, files (bytes), parameters, hashes and what the comparison found.

    Raises ``UsageError`` for a ``run`` that is no model, an ``out`` that may not be replaced or an adapter that the
    format can't hold, ``EssaError`` if the features computed from the folder differ from the model's own.
    """
    out = Path(config.out)
    _refuse_existing(out, config.overwrite)
    subject, record = _subject(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.mkdir()
        result = _write(beside, config, subject, record)
        _replace(out, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # gone already if all went well
    return {"out": str(out), **result}


def _write(folder: Path, config: ExportConfig, subject: Subject, record: Record) -> dict[str, Any]:
    form, backbone = FORMATS[config.format], subject.backbone
    form.write(folder, subject)
    run = record.checkpoint
    if run:
        shutil.copyfile(find_run(run) / CONFIG, folder / RUN_CONFIG)
    adapter = label(record.section("adapter")) if run else _label(backbone)
    result: dict[str, Any] = {
        "format": config.format,
        "branch": config.branch if run else None,
        "architecture": backbone.name.split(".")[0],
        "adapter": adapter,
        "merged": None if adapter is None else backbone.adapter_settings is None,
        "step": record.state.get("step"),
        "parameters": sum(parameter.numel() for parameter in backbone.vit.parameters()),
        "channels": subject.in_chans,
        "channel_rule": getattr(backbone, "channel_rule", None),
        "sha256": file_sha256(next(folder / name for name in form.FILES if (folder / name).is_file())),
        "base_weights_sha256": record.state.get("weights_sha256") if run else backbone.weights_sha256,
        "data_manifest_sha256": record.state.get("data_manifest_sha256"),
        **compare(form, folder, subject),
        "model_bytes": sum(t.nbytes for t in backbone.vit.state_dict().values()),
        "adapter_bytes": adapter_bytes(run, config.branch, _plain_buffers(subject)) if run else None,
        "files": _sizes(folder),
    }
    card = folder / CARD
    card.write_text(model_card(form, record, subject, result), encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(card.stat().st_mode)  # safetensors leaves files that only their owner can read
    return result | {"files": _sizes(folder)}


def _subject(config: ExportConfig) -> tuple[Subject, Record]:
    """The model and what is recorded about it, refused where the format can't hold it."""
    path, ref, record = Path(config.run).expanduser(), config.run, Record({}, {}, {}, {})
    if is_run(find_run(path)):
        path = find_checkpoint(path)  # once: a run that goes on writes newer ones meanwhile
        ref, record = str(path), read_record(path)
    if config.branch == "student":
        ref = f"student:{path}"
    backbone = load_model(ref).eval()
    form = FORMATS[config.format]
    if form.PLAIN and backbone.adapter_settings is not None:
        others = " or ".join(name for name, other in FORMATS.items() if not other.PLAIN)
        raise UsageError(
            f"adapter {_label(backbone)} can't be merged into plain weights: export with format={others}"
        )
    size = config.image_size or backbone.image_size
    if size != backbone.image_size and form.RESIZING:
        raise UsageError(f"image_size is for format=onnx; what format={config.format} writes takes any size")
    if size < backbone.patch_size or size % backbone.patch_size:
        raise UsageError(
            f"image_size={size} is not a multiple of the patch size {backbone.patch_size} of {backbone.name}"
        )
    return Subject(backbone, ref, _own_settings(record, backbone), size), record


def _label(backbone: Backbone) -> str | None:
    return None if backbone.adapter_settings is None else label(backbone.adapter_settings)


def _own_settings(record: Record, backbone: Backbone) -> dict[str, Any]:
    """What ``BackboneConfig`` needs to build the same architecture: as the run was told, or read off the backbone."""
    if told := record.section("backbone"):
        return {k: v for k, v in told.items() if k not in NOT_ARCHITECTURE and v is not None}
    vit, shipped = backbone.vit, backbone.vit.pretrained_cfg
    same = [
        alias
        for alias, (name, other) in ALIASES.items()
        if other and name == backbone.name and other["patch_size"] == backbone.patch_size
    ]
    own: dict[str, Any] = {"name": same[0] if same else backbone.name}
    own["pos_embed"] = "dinov2" if isinstance(vit._pos_embed, DINOv2PositionEmbedding) else "timm"
    if vit.patch_embed.proj.in_channels != 3:
        own["in_chans"] = vit.patch_embed.proj.in_channels
    for name, value in (("mean", backbone.mean), ("std", backbone.std)):
        if value != tuple(shipped.get(name, ())):
            own[name] = list(value)
    return own


def _plain_buffers(subject: Subject) -> set[str]:
    """Names of the buffers that the trunk has without an adapter (rotary embeddings have some)."""
    with torch.device("meta"):
        plain = build_architecture(BackboneConfig(**subject.own))
    return {name for name, _ in plain.named_buffers()}


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise UsageError(f"out={out} exists: choose another folder, or overwrite=true to replace an export")
    if foreign := _foreign(out):
        raise UsageError(
            f"out={out} is not an export ({foreign}), so it won't be deleted: choose another folder"
        )


def _foreign(out: Path) -> str:
    """Why ``out`` is no export of this library; empty where it is one, or an empty folder."""
    if out.is_file():
        return "it is a file"
    names = {path.name for path in out.iterdir()}
    if others := sorted(names - FILES)[:3]:
        return f"it has {', '.join(others)}"
    ours = (
        not names
        or RUN_CONFIG in names
        or (CARD in names and f"- {TAG}\n" in (out / CARD).read_text("utf-8"))
    )
    return "" if ours else f"its {CARD} is not one of this library's"


def _replace(out: Path, beside: Path) -> None:
    old = beside.with_suffix(".old")
    if out.exists():
        out.rename(old)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
