"""The layouts of DINOv2's and DINOv3's own code: files of the hub, teachers and students of training checkpoints.

Both name their tensors as timm's ViT does but for a few. DINOv2: ``register_tokens``, ``mlp.w12`` and ``mlp.w3``
(SwiGLU), a mask token, and a position embedding of the class token also beside registers. DINOv3 (timm's ``Eva``):
``storage_tokens``, ``ls1.gamma``, ``mlp.w1`` to ``w3``, one ``attn.qkv.bias`` whose middle third, the keys', is
switched off by ``attn.qkv.bias_mask``, and the rotary periods. Training checkpoints prefix all names
(``teacher.backbone.``) and may number blocks twice, by FSDP's chunk and by place (``blocks.0.3.`` is block 3).
C features, N patches.
"""

import re
from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor

from essa_dist.backbones.formats.names import (
    Names,
    Notes,
    is_dinov3,
    no_place,
    packed_swiglu,
    rename_back,
    set_biases,
    unfold_class_position,
)
from essa_dist.errors import WeightsError

BOTH = (
    ("mask_token", "mask_token"),
    ("cls_token", "cls_token"),
    ("pos_embed", "pos_embed"),
    ("patch_embed.proj.", "patch_embed.proj."),
    ("blocks.*.norm1.", "blocks.*.norm1."),
    ("blocks.*.attn.qkv.", "blocks.*.attn.qkv."),
    ("blocks.*.attn.proj.", "blocks.*.attn.proj."),
    ("blocks.*.norm2.", "blocks.*.norm2."),
    ("norm.", "norm."),
)
MLP = (("blocks.*.mlp.fc1.", "blocks.*.mlp.fc1."), ("blocks.*.mlp.fc2.", "blocks.*.mlp.fc2."))
SWIGLU = (("blocks.*.mlp.w12.", "blocks.*.mlp.fc1."), ("blocks.*.mlp.w3.", "blocks.*.mlp.fc2."))
DINOV2 = (
    *BOTH,
    ("register_tokens", "reg_token"),
    ("blocks.*.ls1.gamma", "blocks.*.ls1.gamma"),
    ("blocks.*.ls2.gamma", "blocks.*.ls2.gamma"),
)
DINOV3 = (
    *BOTH,
    *MLP,
    ("storage_tokens", "reg_token"),
    ("blocks.*.ls1.gamma", "blocks.*.gamma_1"),
    ("blocks.*.ls2.gamma", "blocks.*.gamma_2"),
    ("blocks.*.mlp.w1.", "blocks.*.mlp.fc1_g."),
    ("blocks.*.mlp.w2.", "blocks.*.mlp.fc1_x."),
    ("blocks.*.mlp.w3.", "blocks.*.mlp.fc2."),
)


CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")


def matches(state: dict[str, Tensor]) -> bool:
    """Whether names say that this is DINOv2's or DINOv3's layout; the one without mask token is timm's as well."""
    tell = {"mask_token", "register_tokens", "storage_tokens"}
    return any(n in tell or CHUNK.match(n) or ".mlp.w12." in n or n.endswith("qkv.bias_mask") for n in state)


def to_timm(state: dict[str, Tensor], vit: Any, notes: Notes) -> dict[str, Tensor]:
    """Tensors of a trunk (prefixes taken off) under timm's names for ``vit``; ``mask_token`` [1, C] keeps its name.

    Raises WeightsError for biases or rotary periods that ``vit`` would not apply.
    """
    out: dict[str, Tensor] = {}
    names = _names(vit)
    for theirs, tensor in state.items():
        ours = CHUNK.sub("blocks.", theirs)
        ours = names.to_timm(ours) or ours
        if ours.startswith("local_cls_norm."):
            notes.dropped.append((theirs, "used on local crops in DINOv3's training only"))
            continue
        if ours != theirs:
            notes.renamed.append((theirs, ours))
        out[ours] = tensor
    if is_dinov3(vit):
        _without_fixed(out, vit, notes)
    return out


def _without_fixed(state: dict[str, Tensor], vit: Any, notes: Notes) -> None:
    """Take out of ``state`` what DINOv3 saves and timm computes, after checking that it is the same."""
    periods = state.pop("rope_embed.periods", None)
    if periods is not None:
        own = vit.rope.periods.float().cpu()  # DINOv3 keeps them in bf16, of 8 bits
        if periods.shape != own.shape or not torch.allclose(periods.float(), own, rtol=2**-7):
            raise WeightsError(
                "rope_embed.periods differ from those of the architecture: it has another rotary base"
            )
        notes.dropped.append(("rope_embed.periods", "computed by timm, and the same"))
    for block in range(len(vit.blocks)):
        name = f"blocks.{block}.attn.qkv.bias"
        mask = state.pop(f"{name}_mask", None)
        bias = state.pop(name, None)
        if bias is None:
            continue
        query, key, value = bias.chunk(3)
        if mask is not None:
            key = torch.zeros_like(key)
            notes.dropped.append(
                (f"{name}_mask", "it switches off the bias of keys, which timm's Eva never has")
            )
        set_biases(state, block, {"q": (name, query), "k": (name, key), "v": (name, value)}, vit, notes)


def _names(vit: Any) -> Names:
    if isinstance(vit, Eva):
        gated = hasattr(vit.blocks[0].mlp, "fc1_g")
        return Names(*(pair for pair in DINOV3 if not gated or pair not in MLP))
    return Names(*DINOV2, *(SWIGLU if packed_swiglu(vit) else MLP))


def from_timm(state: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """Tensors of ``vit`` under timm's names (with or without ``mask_token`` [1, C]) in the layout of the hub's files.

    A mask token that is not given is zero. Beside registers the class token's position embedding is zero, since
    timm has added it to the token. Raises WeightsError for a trunk that the layout can't hold.
    """
    state = dict(state)
    token = state["cls_token"]
    state.setdefault("mask_token", token.new_zeros(1, token.shape[2]))
    if isinstance(vit, Eva):
        return _to_dinov3(state, vit)
    unfold_class_position(state, vit, layout="DINOv2's layout")
    return rename_back(state, _names(vit), layout="DINOv2's layout")


def _to_dinov3(state: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    if not is_dinov3(vit):
        raise no_place("DINOv3's layout", ["the position embedding"])
    for index in range(len(vit.blocks)):
        own = f"blocks.{index}.attn."
        query, value = state.pop(f"{own}q_bias", None), state.pop(f"{own}v_bias", None)
        zero = state[f"{own}proj.bias"].new_zeros(state[f"{own}qkv.weight"].shape[0] // 3)
        state[f"{own}qkv.bias"] = torch.cat(
            [zero if query is None else query, zero, zero if value is None else value]
        )
    out = rename_back(state, _names(vit), layout="DINOv3's layout")
    for index in range(len(vit.blocks)):
        bias = out[f"blocks.{index}.attn.qkv.bias"]
        mask = torch.ones_like(bias)
        mask[len(bias) // 3 : 2 * len(bias) // 3] = 0
        out[f"blocks.{index}.attn.qkv.bias_mask"] = mask
    out["rope_embed.periods"] = vit.rope.periods.detach().clone()
    return out
