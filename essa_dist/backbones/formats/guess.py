"""The released timm architecture that a file's tensors have the shapes of."""

import math
import re

import timm
from torch import Tensor

from essa_dist.backbones.formats import mae
from essa_dist.backbones.formats.names import Notes
from essa_dist.backbones.formats.prefixes import ANCHORS, take_trunk
from essa_dist.errors import UsageError, WeightsError

SIZES = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1536, 40): "giant",
    (4096, 40): "7b",
}
"""(width, blocks) -> timm's word for it."""
GATED = re.compile(r"\.mlp\.(w12|weights_in|fc1_g|gate_proj|w1)\.weight$")
SCALED = re.compile(r"(\.ls1\.gamma|\.layer_scale1\.lambda1|\.gamma_1)$")
REGISTERS = re.compile(r"(^|\.)(reg_token|register_tokens|storage_tokens)$")
POSITIONS = re.compile(r"^(pos_embed|embeddings\.position_embeddings)$")
BLOCK = re.compile(r"(?:encoder\.|model\.)?(?:blocks|layers?)\.(?:\d+\.)*?(\d+)\.(?!\d)")
"""The last number is the block's; before it may be that of DINOv2's chunk."""


def guess_architecture(held: dict[str, Tensor]) -> str:
    """The timm name whose patch size, width, depth, tokens, layer scale, gate and position embedding the tensors have.

    ``held`` may be of any layout and prefix. Raises UsageError when it is none; give the name then, as ``name@file``.
    """
    try:
        state = take_trunk(held, Notes())
    except WeightsError as error:
        raise _unknown(str(error)) from error
    patch = next(state[anchor] for anchor in ANCHORS if anchor in state)
    depth = len({block.group(1) for name in state if (block := BLOCK.match(name))})
    size = SIZES.get((patch.shape[0], depth))
    registers = next((t.shape[1] for name, t in state.items() if REGISTERS.search(name)), 0)
    positions = next((t.shape[1] for name, t in state.items() if POSITIONS.search(name)), None)
    side = patch.shape[-1]
    name = None
    if size is not None and positions is None and (side, registers) == (16, 4):
        name = _dinov3(state, size)
    elif size is not None and positions is not None:
        name = _plain(state, size, side, registers, math.isqrt(positions) * side)
    if name is None or not timm.is_model(name.split(".")[0]):
        raise _unknown(f"width {patch.shape[0]}, {depth} blocks, patch size {side}, {registers} registers")
    return name


def _dinov3(state: dict[str, Tensor], size: str) -> str | None:
    gated = any(GATED.search(name) for name in state)
    if gated != (size in ("huge", "7b")) and (size, gated) != ("small", True):
        return None
    plus = "_plus" if gated and size != "7b" else ""
    biased = size == "tiny" or any(_biased(name, tensor) for name, tensor in state.items())
    return f"vit_{size}{plus}_patch16_dinov3{'_qkvb' if biased else ''}"


def _biased(name: str, bias: Tensor) -> bool:
    """Whether it is a bias of queries that timm's architectures without one would have to drop."""
    if name.endswith(".attn.q_bias"):
        return True
    return name.endswith((".attn.qkv.bias", ".attention.q_proj.bias")) and bool(bias[: len(bias) // 3].any())


def _plain(state: dict[str, Tensor], size: str, side: int, registers: int, image: int) -> str | None:
    gated = any(GATED.search(name) for name in state)
    if any(SCALED.search(name) and not _without_effect(name, scale) for name, scale in state.items()):
        # timm packs the gate of the giant into fc1, which no name tells.
        if side != 14 or registers not in (0, 4) or (gated and size != "giant"):
            return None
        return f"vit_{size}_patch14{'_reg4' if registers else ''}_dinov2"
    if registers or gated:
        return None
    name = f"vit_{size}_patch{side}_{image}"
    name = name if timm.is_model(name) else f"vit_{size}_patch{side}_224"
    return (
        f"{name}.mae" if mae.matches(state) and f"{name}.mae" in timm.list_pretrained(f"{name}.*") else name
    )


def _without_effect(name: str, scale: Tensor) -> bool:
    """Whether it is a scale that transformers keeps for a trunk without: its ``Dinov2Model`` has it in any case."""
    return name.endswith("lambda1") and bool((scale == 1).all())


def _unknown(why: str) -> UsageError:
    return UsageError(
        f"the weights file fits no known ViT ({why}): name its architecture as model=timm_name@file"
    )
