"""What ``engine`` says of activations reaches the trunk, and nothing does where the fast path is off."""

import pytest
import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer

from essa_dist.adapters import ADAPTERS, inject_adapter
from essa_dist.backbones import Backbone
from essa_dist.backbones.saved import saved_tensors
from essa_dist.engine.fast import EngineConfig, make_ready
from essa_dist.objectives import DINOv2Config, DINOv2Objective

EVERYTHING = {"keep": "8bit", "recompute": "mlp", "offload": True, "compile": "auto"}


def ready(**engine: object) -> Backbone:
    torch.manual_seed(0)
    vit = VisionTransformer(16, 4, embed_dim=24, depth=2, num_heads=2, num_classes=0, global_pool="")
    vit.pretrained_cfg = {}
    backbone = Backbone(vit, name="tiny")
    inject_adapter(backbone, ADAPTERS["apla"][0](), seed=0)
    head = {"prototypes": 8, "hidden": 8, "bottleneck": 4}
    objective = DINOv2Objective(backbone, DINOv2Config(head=head), compute_dtype=torch.float32)
    make_ready(objective, EngineConfig.model_validate(engine), torch.float32)
    objective.train()
    return backbone


def kept(backbone: Backbone) -> int:
    return sum(row.nbytes for row in saved_tensors(backbone, lambda: backbone(torch.ones(3, 3, 16, 16))))


def test_each_setting_keeps_less_than_none_and_together_least() -> None:
    plain, lean, again = kept(ready()), kept(ready(keep="8bit")), kept(ready(recompute="mlp"))
    assert kept(ready(**EVERYTHING)) < min(lean, again) <= max(lean, again) < plain


def test_the_slow_path_leaves_every_layer_as_it_is() -> None:
    slow = ready(fast=False, **EVERYTHING)
    assert kept(slow) == kept(ready(fast=False))
    for module in slow.vit.modules():
        assert type(module).__module__.startswith(("timm.", "torch."))
        assert "forward" not in vars(module)


def test_every_block_is_said_by_its_name() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        EngineConfig(recompute=1)
