"""From tensors of timm's names to tensors of one trunk's shapes. N patches, C features."""

import math
from typing import Any

import torch
from timm.models import eva, vision_transformer
from timm.models.eva import Eva
from torch import Tensor

from essa_dist.backbones.formats.names import Notes


def fit(state: dict[str, Tensor], vit: Any, notes: Notes) -> dict[str, Tensor]:
    """``state`` after timm's own filter of checkpoints, which resizes position and patch embeddings and drops
    what it computes itself; what it did is noted."""
    state = dict(state)
    _fit_class_position(state, vit, notes)
    timms = eva.checkpoint_filter_fn if isinstance(vit, Eva) else vision_transformer.checkpoint_filter_fn
    fitted: dict[str, Tensor] = timms(dict(state), vit)
    for name, tensor in fitted.items():
        if name in state and state[name].shape != tensor.shape:
            shapes = (tuple(state[name].shape), tuple(tensor.shape))
            notes.resized.append((name, *shapes, "timm's bicubic interpolation"))
    of = {id(tensor): name for name, tensor in fitted.items()}
    for name in state.keys() - fitted.keys():
        if id(state[name]) in of:
            notes.renamed.append((name, of[id(state[name])]))
        else:
            notes.dropped.append((name, "timm has no use for it"))
    return fitted


def _fit_class_position(state: dict[str, Tensor], vit: Any, notes: Notes) -> None:
    """Match position embeddings with ([1, 1 + N, C]) and without ([1, N, C]) one for the class token.

    timm's trunks with registers have none, so it is added to the token, to which it would be added anyway. Where the
    file has none (sine and cosine of patches only) it is zero. Grids are square, which tells the two apart.
    """
    positions = state.get("pos_embed")
    if positions is None or vit.pos_embed is None or positions.shape == vit.pos_embed.shape:
        return
    length, width = positions.shape[1:]
    wanted = 0 if vit.no_embed_class else vit.num_prefix_tokens
    if wanted == 0 and not _square(length) and _square(length - 1):
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
        rule = "the class token's was added to the token"
    elif wanted == 1 and _square(length):
        state["pos_embed"] = torch.cat([positions.new_zeros(1, 1, width), positions], dim=1)
        rule = "zero for the class token"
    else:
        return
    notes.resized.append(("pos_embed", tuple(positions.shape), tuple(state["pos_embed"].shape), rule))


def _square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number
