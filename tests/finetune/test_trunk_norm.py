"""A head without the trunk's final norm is timm's and MED-PEFT's, and the trunk keeps the norm for all others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError
from essa_dist.export.models import load_model
from essa_dist.finetune.model import load_finetuned
from essa_dist.finetune.objective import logits_of
from essa_dist.heads import PooledHead, PooledHeadConfig
from tests.finetune.conftest import SIDE, Tuned
from tests.finetune.test_finetune import predicted_again

Tune = Callable[..., Tuned]
SHAPE: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "weight_init": "",
}
WORDS = (
    "head.pooling=mean",
    "head.fc_norm=true",
    "head.trunk_norm=false",
    "duration=2",
    "validation.every=2",
)


@pytest.mark.parametrize("family", [{}, {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1}])
@torch.no_grad()
def test_logits_are_timms_with_average_pooling_and_fc_norm(family: dict[str, Any]) -> None:
    torch.manual_seed(0)
    judge = VisionTransformer(**SHAPE, **family, num_classes=5, global_pool="avg", fc_norm=True).eval()
    for parameter in judge.parameters():  # a norm that starts at one must not hide that it is missing
        parameter.add_(torch.randn_like(parameter) * 0.1)
    plain = VisionTransformer(**SHAPE, **family, num_classes=0, global_pool="").eval()
    plain.pretrained_cfg = {}
    loaded = plain.load_state_dict(judge.state_dict(), strict=False)
    assert set(loaded.missing_keys) == {"norm.weight", "norm.bias"}
    plain.norm.weight.normal_()
    head = PooledHead(24, 5, PooledHeadConfig(pooling="mean", fc_norm=True, trunk_norm=False)).eval()
    head.fc_norm.load_state_dict(judge.fc_norm.state_dict())
    head.linear.load_state_dict(judge.head.state_dict())
    backbone, images = Backbone(plain, name="tiny"), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(logits_of(backbone, head, images), judge(images))
    head.trunk_norm = True
    assert not torch.allclose(logits_of(backbone, head, images), judge(images), atol=0.1)


def test_the_norm_is_back_when_a_forward_has_failed() -> None:
    vit = Eva(img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, num_classes=0, global_pool="")
    vit.pretrained_cfg = {}
    norm, head = vit.norm, PooledHead(24, 5, PooledHeadConfig(trunk_norm=False))
    with pytest.raises(UsageError, match="not a multiple"):
        logits_of(Backbone(vit, name="tiny"), head, torch.zeros(1, 3, 15, 16))
    assert vit.norm is norm


@pytest.mark.parametrize("adapter", ["full", "ln_tuning", "ssf", "bitfit"])
def test_a_norm_that_is_left_out_is_not_trained(cells: str, tune: Tune, adapter: str) -> None:
    tuned = tune("run", cells, *WORDS, f"adapter={adapter}")
    tensors = load_file(Path(tuned.result["checkpoint"]) / "student.safetensors")
    assert tensors
    assert not any(name.startswith("backbone.vit.norm.") for name in tensors)
    rows = tuned.rows()
    assert abs(predicted_again(tuned.run, cells, rows).numpy() - rows["probabilities"]).max() < 1e-5
    with torch.no_grad():
        images = torch.randn(2, 3, SIDE, SIDE)
        tokens = load_model(str(tuned.run))(images).patches  # for embed, evaluate, export: with its norm
        torch.testing.assert_close(tokens, load_finetuned(str(tuned.run)).backbone(images).patches)
        assert tokens.var(dim=-1).mean() == pytest.approx(1, abs=0.1)  # random weights: the norm's are one


def test_masks_have_no_pooled_head_that_could_leave_it_out(nuclei: str, tune: Tune) -> None:
    with pytest.raises(UsageError, match="for tasks that judge whole images"):
        tune("run", nuclei, "head.trunk_norm=false")
