"""The model that supervised adaptation starts from."""

import logging
from typing import TYPE_CHECKING

import torch
from timm.layers.drop import DropPath
from torch import nn

from essa_dist.adapters import Adapter, inject_adapter, label
from essa_dist.backbones import Backbone, build_backbone
from essa_dist.backbones.recompute import recompute_blocks
from essa_dist.errors import UsageError
from essa_dist.export.models import load_model, with_its_adapter

if TYPE_CHECKING:
    from essa_dist.finetune.config import FinetuneConfig

log = logging.getLogger(__name__)


def start_model(config: "FinetuneConfig") -> Backbone:
    """The trunk before ``config.adapter`` is put into it. Raises UsageError or WeightsError."""
    if not config.model:
        return build_backbone(config.backbone, seed=config.seed)
    backbone = with_its_adapter(config.model) if config.keep_adapter else load_model(config.model)
    if config.backbone.drop_path:
        set_drop_path(backbone, config.backbone.drop_path)
    if config.backbone.checkpoint_activations:
        recompute_blocks(backbone.vit)
    backbone.mean = config.backbone.mean or backbone.mean
    backbone.std = config.backbone.std or backbone.std
    return backbone


def put_adapter(backbone: Backbone, config: "FinetuneConfig") -> Adapter:
    """Inject the adapter; UsageError where one that was kept is in its way."""
    try:
        return inject_adapter(backbone, config.adapter, seed=config.seed)
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
