"""The model that supervised adaptation starts from."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from timm.layers.drop import DropPath
from torch import nn

from essa_dist.adapters import Adapter, inject_adapter, label
from essa_dist.adapters.stacked import trained_on
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.backbones.build import ALIASES
from essa_dist.backbones.position import DINOv2PositionEmbedding
from essa_dist.backbones.recompute import recompute_blocks
from essa_dist.errors import UsageError
from essa_dist.export.models import load_model, with_its_adapter
from essa_dist.export.saved import find_run, model_settings
from essa_dist.runfolder import is_run

if TYPE_CHECKING:
    from essa_dist.finetune.config import FinetuneConfig

log = logging.getLogger(__name__)


def start_model(config: "FinetuneConfig") -> Backbone:
    """The trunk before ``config.adapter`` is put into it. Raises UsageError or WeightsError."""
    if not config.model:
        return build_backbone(config.backbone, seed=config.seed)
    _refuse_other_weights(config)
    backbone = with_its_adapter(config.model) if config.keep_adapter else load_model(config.model)
    _refuse_another(backbone, config)
    if config.backbone.drop_path:
        set_drop_path(backbone, config.backbone.drop_path)
    if config.backbone.checkpoint_activations:
        recompute_blocks(backbone.vit)
    backbone.mean = config.backbone.mean or backbone.mean
    backbone.std = config.backbone.std or backbone.std
    return backbone


def _refuse_other_weights(config: "FinetuneConfig") -> None:
    """``backbone.weights`` that are not those which the run of ``model`` started from; of others nothing is known."""
    run, given = find_run(Path(config.model.removeprefix("student:")).expanduser()), config.backbone.weights
    if given == BackboneConfig().weights or not is_run(run):
        return
    before = model_settings(run)
    if not before.model and Path(before.backbone.weights).name != Path(given).name:
        raise UsageError(
            f"backbone.weights={given}, but model={config.model} started from {before.backbone.weights}: leave "
            "backbone.weights out, or model"
        )


def _refuse_another(backbone: Backbone, config: "FinetuneConfig") -> None:
    """Settings of ``backbone`` that are not their defaults and say another trunk than the one that ``model`` is."""
    told, plain = config.backbone, BackboneConfig()
    name, shape = ALIASES.get(told.name, (told.name, {}))
    rule = "dinov2" if isinstance(backbone.vit._pos_embed, DINOv2PositionEmbedding) else "timm"
    patch = shape.get("patch_size", backbone.patch_size)
    differing = {
        "name": (name.split(".")[0], patch) != (backbone.name.split(".")[0], backbone.patch_size),
        "in_chans": told.in_chans != backbone.in_chans,
        "pos_embed": told.pos_embed not in ("auto", rule),
    }
    found = {"name": backbone.name, "in_chans": backbone.in_chans, "pos_embed": rule}
    for setting, differs in differing.items():
        if differs and (given := getattr(told, setting)) != getattr(plain, setting):
            raise UsageError(
                f"backbone.{setting}={given}, but model={config.model} has {found[setting]}: leave backbone.{setting} out, or "
                "choose another model"
            )


def put_adapter(backbone: Backbone, config: "FinetuneConfig") -> Adapter:
    """Inject the adapter; UsageError where one that was kept is in its way.

    What the run before it trained and can't be merged (VPT's prompts, AdaptFormer's bottlenecks) stays in the model,
    frozen under another adapter and trained on by the same: ESSA's second step then goes on from the model of the first
    with as many tokens, as APLA and BitFit do with their tensors. (How ESSA's own code does it is not published.)
    """
    again = trained_on(backbone.adapter_settings, config.adapter.model_dump(mode="json"))
    if config.keep_adapter and again:
        raise UsageError(
            f"keep_adapter=true: what {again[0]} left in {config.model} stays frozen, and adapter={label(config.adapter)} "
            "would train on it: choose another, or keep_adapter=false"
        )
    try:
        return inject_adapter(backbone, config.adapter, seed=config.seed, final_norm=config.head.trunk_norm)
    except (UsageError, AttributeError, TypeError, ValueError) as error:
        if not config.keep_adapter:
            raise
        raise UsageError(
            f"adapter={label(config.adapter)} does not go on top of the kept adapter of {config.model} ({error}): choose "
            "another, or keep_adapter=false, which merges it"
        ) from error


def set_drop_path(backbone: Backbone, rate: float) -> None:
    """Stochastic depth that grows linearly with depth to ``rate``, in a model that was built without."""
    blocks = backbone.vit.blocks
    rates = torch.linspace(0, rate, len(blocks)).tolist()
    for block, own in zip(blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            if isinstance(getattr(block, name, None), nn.Identity | DropPath):
                setattr(block, name, DropPath(own) if own else nn.Identity())
