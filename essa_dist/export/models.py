"""Any model reference to a plain backbone: a timm name, a weights file, a run, an export."""

from pathlib import Path

import yaml

from essa_dist.adapters.peft_folder import is_peft_folder
from essa_dist.adapters.stacked import merge_all
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.backbones.formats.files import weights_file
from essa_dist.backbones.formats.guess import guess_architecture
from essa_dist.backbones.weights import read_state
from essa_dist.errors import UsageError
from essa_dist.export import essa
from essa_dist.export.attach import attach
from essa_dist.export.saved import ModelSettings, find_checkpoint, find_run, model_settings
from essa_dist.runfolder import is_run

__all__ = ["base_model", "guess_architecture", "load_model"]


def load_model(ref: str) -> Backbone:
    """The model that ``ref`` names: eval mode, fp32, on the CPU, nothing trainable, adapters merged.

    ``ref``: a run folder or a checkpoint in it (the teacher; with the prefix ``student:`` the student), an export folder,
    a weights file or folder in a layout of ``backbones.formats``, or a timm model name, optionally ``name@weights file``; any of
    them with ``+folder`` behind it is that model with an adapter merged, of a run or of PEFT.
    Raises UsageError or WeightsError naming the reference and what it could have been.
    """
    student = ref.startswith("student:")
    path = Path(ref.removeprefix("student:")).expanduser()
    if is_run(find_run(path)):
        backbone = _from_run(ref, path)
    elif student:
        raise UsageError(f"model={ref}: only a run folder has a student, and {path} is not one")
    elif "+" in ref and not path.exists():
        backbone = _with_adapter(*ref.rsplit("+", 1))
    elif is_peft_folder(path):
        raise UsageError(f"model={path} is an adapter of PEFT, not a model: write model=BASE+{path}")
    elif path.is_dir():
        backbone = _from_export(path)
    elif path.is_file():
        backbone = _from_file(path)
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
    return _base(model_settings(run)).eval().requires_grad_(False)


def run_base(run: Path) -> Backbone:
    """The model that the run's own adapter was put into: what it started from, merged or with its adapter kept."""
    return _base(model_settings(run))


def _base(config: ModelSettings) -> Backbone:
    if not config.model:
        return build_backbone(config.backbone, seed=config.seed)
    return with_its_adapter(config.model) if config.keep_adapter else load_model(config.model)


def with_its_adapter(ref: str) -> Backbone:
    """The model of a run with its adapter as modules of its own, not merged. Raises UsageError for anything else."""
    path = Path(ref.removeprefix("student:")).expanduser()
    if not is_run(find_run(path)):
        raise UsageError(f"keep_adapter=true, but model={ref} is no run, so it has no adapter to keep")
    return attach(base_model(find_run(path)), ref)[0]


def _from_run(ref: str, path: Path) -> Backbone:
    find_checkpoint(path)  # before seconds of loading
    return with_adapter(_base(model_settings(find_run(path))), ref)


def _with_adapter(base: str, adapter: str) -> Backbone:
    folder = Path(adapter.removeprefix("student:")).expanduser()
    if not (is_run(find_run(folder)) or is_peft_folder(folder)):
        raise UsageError(f"model={base}+{adapter}: {folder} is neither a run folder nor a PEFT folder")
    return with_adapter(load_model(base), adapter)


def with_adapter(base: Backbone, ref: str) -> Backbone:
    """``base`` and the adapter of ``ref`` as one model; merged is what can be, of adapters that were in ``base`` too."""
    backbone, adapter = attach(base, ref)
    adapter.merge(backbone)
    merge_all(backbone, base.adapter_settings if adapter.merges else backbone.adapter_settings)
    return backbone


def _from_export(folder: Path) -> Backbone:
    config = folder / "config.json"
    if not config.is_file() or weights_file(folder) is None:
        raise UsageError(
            f"model={folder} is neither a run folder nor an export (config.json and model.safetensors)"
        )
    card = yaml.safe_load(config.read_text())  # JSON is YAML
    if card.get("format") == essa.FORMAT:
        return essa.read(folder)
    if "model_type" in card:  # of transformers
        return _from_file(folder)
    made_as = card.get("backbone") or {"name": card.get("architecture")}
    if not made_as["name"]:
        raise UsageError(f"model={folder}: its config.json names no architecture, so use timm_name@{folder}")
    shipped = card.get("pretrained_cfg") or {}
    pixels = {key: tuple(shipped[key]) for key in ("mean", "std") if key in shipped}
    in_chans = len(pixels.get("mean", (0, 0, 0)))
    settings = {"in_chans": in_chans, **pixels, **made_as}
    return build_backbone(BackboneConfig(**settings, weights=str(folder)))


def _from_file(path: Path) -> Backbone:
    # Tensors are mapped, not copied, so asking for their shapes first costs no second reading.
    return build_backbone(BackboneConfig(name=guess_architecture(read_state(path)), weights=str(path)))
