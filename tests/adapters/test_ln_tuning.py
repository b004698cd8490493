"""LN-Tune beside the shared contract: which tensors are norms."""

from functools import partial
from typing import Any

import pytest
from timm.layers import RmsNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from essa_dist.adapters.ln_tuning import LNTuning, LNTuningConfig
from essa_dist.errors import UsageError

BLOCK = {"norm1", "norm2"}
INNER = {"attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"}


@pytest.mark.parametrize(
    ("vit_class", "family", "in_blocks", "outside", "tensors"),
    [
        (VisionTransformer, {}, BLOCK, {"norm"}, {"weight", "bias"}),
        (VisionTransformer, {"norm_layer": RmsNorm}, BLOCK, {"norm"}, {"weight"}),
        (VisionTransformer, {"pre_norm": True, "fc_norm": True}, BLOCK, {"norm_pre", "fc_norm"}, {"weight", "bias"}),
        (VisionTransformer, {"embed_norm_layer": nn.LayerNorm}, BLOCK, {"patch_embed.norm", "norm"}, {"weight", "bias"}),
        (
            VisionTransformer,
            {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True, "init_values": 0.1},
            BLOCK | INNER,
            {"norm"},
            {"weight", "bias"},
        ),
        (
            Eva,
            {"swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "init_values": 0.1},
            BLOCK | INNER - {"attn.q_norm", "attn.k_norm"},
            {"norm"},
            {"weight", "bias"},
        ),
    ],
)  # fmt: skip
def test_every_norm_and_nothing_else_is_trained(
    tiny: Any,
    vit_class: type,
    family: dict[str, Any],
    in_blocks: set[str],
    outside: set[str],
    tensors: set[str],
) -> None:
    backbone = tiny(vit_class, **family)
    LNTuning(LNTuningConfig()).inject(backbone, seed=0)
    norms = outside | {f"blocks.{index}.{norm}" for index in range(2) for norm in in_blocks}
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == {
        f"vit.{norm}.{tensor}" for norm in norms for tensor in tensors
    }


def test_a_trunk_whose_norms_have_no_weights_is_refused(tiny: Any) -> None:
    backbone = tiny(VisionTransformer, norm_layer=partial(nn.LayerNorm, elementwise_affine=False))
    with pytest.raises(UsageError, match=r"tiny has no norm with weights; choose another"):
        LNTuning(LNTuningConfig()).inject(backbone, seed=0)
