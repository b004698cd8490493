"""Tiny trunks to put adapters into."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from essa_dist.backbones import Backbone


@pytest.fixture
def tiny() -> Callable[..., Backbone]:
    """``tiny(VisionTransformer, reg_tokens=3)``: width 24, 2 blocks, 16 px in patches of 4; always the same weights."""

    def build(vit_class: type[nn.Module], **settings: Any) -> Backbone:
        shape = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2} | settings
        torch.manual_seed(0)
        vit: Any = vit_class(**shape, num_classes=0, global_pool="", dynamic_img_size=True)
        vit.pretrained_cfg = {}
        for parameter in vit.parameters():  # what starts at zero or one must not hide a mistake
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        return Backbone(vit, name="tiny").requires_grad_(False)

    return build
