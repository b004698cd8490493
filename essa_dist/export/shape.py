"""The shape of a plain ViT in the words of DINOv2's code, which transformers' classes share."""

from typing import Any, NamedTuple

from timm.layers.mlp import GluMlp
from torch import nn

from essa_dist.backbones.formats.names import no_place

FLOATS_OF_SWIGLU = 8  # the hidden width of DINOv2's gated MLP is a multiple of it


class Shape(NamedTuple):
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    registers: int
    qkv_bias: bool
    swiglu: bool
    layer_scale: bool
    norm_eps: float


def shape_of(vit: Any, layout: str) -> Shape:
    """Raises WeightsError naming what ``layout`` can't hold and no tensor's name would betray."""
    block = vit.blocks[0]
    swiglu = isinstance(block.mlp, GluMlp)
    wanted = nn.SiLU if swiglu else nn.GELU
    act = block.mlp.act
    if not isinstance(act, wanted) or getattr(act, "approximate", "none") != "none":
        raise no_place(layout, [f"the activation {act}"])
    if vit.pos_embed is None:
        raise no_place(layout, ["a trunk without position embeddings"])
    return Shape(
        width=vit.embed_dim,
        depth=len(vit.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=_mlp_ratio(vit, layout, swiglu=swiglu),
        registers=vit.num_prefix_tokens - 1,
        qkv_bias=block.attn.qkv.bias is not None,
        swiglu=swiglu,
        layer_scale=hasattr(block.ls1, "gamma"),
        norm_eps=block.norm1.eps,
    )


def _mlp_ratio(vit: Any, layout: str, *, swiglu: bool) -> float:
    """For a gated MLP the ratio before two thirds of it are taken: the hidden width is then 2 ratio / 3, rounded up."""
    width, hidden = vit.embed_dim, vit.blocks[0].mlp.fc2.in_features
    if not swiglu:
        return float(hidden / width)
    for ratio in range(1, 17):
        thirds = int(width * ratio * 2 / 3)
        if -(-thirds // FLOATS_OF_SWIGLU) * FLOATS_OF_SWIGLU == hidden:
            return float(ratio)
    raise no_place(layout, [f"the gated MLP's hidden width {hidden}"])
