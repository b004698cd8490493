"""The layouts of transformers' ``Dinov2Model``, ``Dinov2WithRegistersModel``, ``DINOv3ViTModel`` and ``ViTModel``.

Query, key and value are three layers there and one in timm. Files keep the names of transformers 4
(``encoder.layer.0.attention.attention.query.weight``); modules of transformers 5 call some of them otherwise
(``attention.q_proj.weight``), and both are read. C features.
"""

import re
from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor

from essa_dist.backbones.formats.huggingface_names import (
    DINOV2,
    DINOV3,
    DINOV3_MLP,
    DINOV3_SWIGLU,
    MLP,
    OF_FILES,
    SWIGLU,
    VIT,
)
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


def matches(state: dict[str, Tensor]) -> bool:
    """Whether these are transformers' names, of any of the models above."""
    return any(name.startswith("embeddings.patch_embeddings.") for name in state)


def to_timm(state: dict[str, Tensor], vit: Any, notes: Notes) -> dict[str, Tensor]:
    """Tensors of a trunk (prefixes taken off) under timm's names for ``vit``; ``mask_token`` comes as [1, C].

    Layer scales of one are dropped for a trunk that has none. Raises WeightsError for biases that ``vit`` lacks.
    """
    dinov3 = "embeddings.patch_embeddings.weight" in state
    names = _names(state, dinov3=dinov3)
    out: dict[str, Tensor] = {}
    parts: dict[
        str, dict[str, tuple[str, Tensor]]
    ] = {}  # "blocks.0.attn.qkv.weight" -> letter -> name, tensor
    for theirs, tensor in state.items():
        ours = names.to_timm(_of_files(theirs, dinov3=dinov3)) or theirs
        if reason := _not_trunk(ours, tensor, vit):
            notes.dropped.append((theirs, reason))
        elif part := re.search(r"(?<=\.attn\.)[qkv](?=\.)", ours):
            fused = f"{ours[: part.start()]}qkv{ours[part.end() :]}"
            parts.setdefault(fused, {})[part.group()] = (theirs, tensor)
        else:
            out[ours] = tensor
            if ours != theirs:
                notes.renamed.append((theirs, ours))
    _fuse(out, parts, vit, notes)
    if "mask_token" in out:
        out["mask_token"] = out["mask_token"].reshape(1, -1)
    return out


def _names(state: dict[str, Tensor], *, dinov3: bool) -> Names:
    if dinov3:
        return Names(
            *DINOV3, *(DINOV3_SWIGLU if any(".gate_proj." in name for name in state) else DINOV3_MLP)
        )
    if any(".layernorm_before." in name for name in state):
        return Names(*VIT)
    return Names(*DINOV2, *(SWIGLU if any(".weights_in." in name for name in state) else MLP))


def _of_files(name: str, *, dinov3: bool) -> str:
    if dinov3:
        return name.removeprefix("model.")
    for pattern, of_files in OF_FILES:
        name = re.sub(pattern, of_files, name)
    return name


def _not_trunk(ours: str, tensor: Tensor, vit: Any) -> str | None:
    """Why a tensor is not the trunk's; None where it is, or may be."""
    if ours.startswith("pooler."):
        return "the pooler behind the trunk"
    if ours == "reg_token" and not tensor.numel():
        return "empty"
    if ours.endswith((".ls1.gamma", ".ls2.gamma")) and not _scaled(vit):
        return "one, and the trunk has no layer scale" if bool((tensor == 1).all()) else None
    return None


def _scaled(vit: Any) -> bool:
    return hasattr(getattr(vit.blocks[0], "ls1", None), "gamma")


def _fuse(
    out: dict[str, Tensor], parts: dict[str, dict[str, tuple[str, Tensor]]], vit: Any, notes: Notes
) -> None:
    for fused, letters in parts.items():
        block = int(fused.split(".")[1])
        if fused.endswith(".bias") and is_dinov3(vit) and block < len(vit.blocks):
            set_biases(out, block, letters, vit, notes)
        elif letters.keys() == set("qkv"):
            out[fused] = torch.cat([letters[letter][1] for letter in "qkv"])
            notes.renamed += [(letters[letter][0], fused) for letter in "qkv"]
        else:
            out |= dict(letters.values())  # a part is missing, these are left over


def from_timm(state: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """Tensors of ``vit`` under timm's names (with or without ``mask_token`` [1, C]) under transformers' names.

    Those of ``Dinov2Model`` (``Dinov2WithRegistersModel`` where there are registers) for a VisionTransformer, of
    ``DINOv3ViTModel`` for an Eva with DINOv3's rotary embedding. What their modules hold and the trunk lacks gets
    the value that changes nothing: mask token and biases of query and value 0, layer scales 1.
    Raises WeightsError for a trunk that they can't hold.
    """
    state = dict(state)
    token = state["cls_token"]
    state.setdefault("mask_token", token.new_zeros(1, token.shape[2]))
    if isinstance(vit, Eva):
        return _to_dinov3(state, vit)
    unfold_class_position(state, vit, layout="Dinov2Model")
    for index in range(len(vit.blocks)):
        own = f"blocks.{index}."
        for scale in ("ls1.gamma", "ls2.gamma"):
            state.setdefault(own + scale, torch.ones_like(state[f"{own}norm1.weight"]))
        _split(state, f"{own}attn.qkv.weight")
        _split(state, f"{own}attn.qkv.bias")
    names = Names(*DINOV2, *(SWIGLU if packed_swiglu(vit) else MLP))
    return rename_back(state, names, layout="Dinov2Model")


def _to_dinov3(state: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    if not is_dinov3(vit):
        raise no_place("DINOv3ViTModel", ["the position embedding"])
    token = state["cls_token"]
    state["mask_token"] = state["mask_token"].reshape(token.shape)
    state.setdefault("reg_token", token.new_zeros(1, 0, token.shape[2]))
    for index in range(len(vit.blocks)):
        own = f"blocks.{index}."
        one = torch.ones_like(state[f"{own}norm1.weight"])
        for scale in ("gamma_1", "gamma_2"):
            state.setdefault(own + scale, one)
        _split(state, f"{own}attn.qkv.weight")
        state[f"{own}attn.q.bias"] = state.pop(f"{own}attn.q_bias", torch.zeros_like(one))
        state[f"{own}attn.v.bias"] = state.pop(f"{own}attn.v_bias", torch.zeros_like(one))
    gated = hasattr(vit.blocks[0].mlp, "fc1_g")
    names = Names(*DINOV3, *(DINOV3_SWIGLU if gated else DINOV3_MLP))
    return rename_back(state, names, layout="DINOv3ViTModel")


def _split(state: dict[str, Tensor], name: str) -> None:
    """``...attn.qkv.weight`` [3C, C] into ``...attn.q.weight`` and so on [C, C]; the same for the bias."""
    fused = state.pop(name, None)
    if fused is not None:
        for letter, part in zip("qkv", fused.chunk(3), strict=True):
            state[name.replace(".qkv.", f".{letter}.")] = part.clone()
