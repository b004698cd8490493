"""Weights in 8 and 4 bits: how they are packed, and unpacked again. Plain torch, on any device and on fake tensors.

Sources: NF4 and double quantisation, QLoRA, arXiv:2305.14314 (its values: appendix E). One thing differs: the second
quantisation takes even steps where QLoRA takes an 8-bit float.
Shapes: C in_features, D out_features, A blocks of a weight, G groups of blocks.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
BLOCK = 64
"""Weights that share a scale in NF4; of one row, as each is a multiple of it."""
GROUP = 256
"""Scales that share a scale of theirs."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_TINY = 1e-30
"""In place of the largest value of a row of zeros."""


def row_scale(rows: Tensor, largest: float) -> Tensor:
    """[.., 1] fp32: what each of ``rows`` is divided by to lie within ``largest``."""
    return rows.abs().amax(-1, keepdim=True).float().clamp_min_(_TINY) / largest


def pack_int8(weight_DC: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [D, C] in even steps from -127 to 127, and the step of each row, fp32 [D, 1]."""
    step = row_scale(weight_DC, 127)
    return (weight_DC / step).round_().to(torch.int8), step


def unpack_int8(codes: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """[D, C]; the codes are exact in 16 bits."""
    return codes.to(dtype).mul_(step.to(dtype))


def pack_fp8(weight_DC: Tensor) -> tuple[Tensor, Tensor]:
    """The bits of e4m3, uint8 [D, C], and the scale of each row, fp32 [D, 1].

    Bits, and not numbers: gloo, DeepSpeed and FSDP2 move bytes, and nothing takes bytes for weights to be cast.
    """
    scale = row_scale(weight_DC, E4M3_MAX)
    return (weight_DC / scale).to(E4M3).view(torch.uint8), scale


def unpack_fp8(bits: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[D, C]."""
    if bits.device.type == "cpu":  # whose cast takes 20 times as long as a look into a table
        every = torch.arange(256, dtype=torch.uint8, device=bits.device).view(E4M3).to(dtype)
        numbers = _look_up(every, bits)
    else:
        numbers = bits.view(E4M3).to(dtype)
    return numbers.view(bits.shape).mul_(scale.to(dtype))


def pack_nf4(weight_DC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Two weights a byte, [D, C / 2], and what they are unpacked with; C is a multiple of ``BLOCK``.

    That is: the largest absolute value of each block less their mean, int8 [G, ``GROUP``]; the step of each group, fp32
    [G, 1]; the mean, [1]; and the two values of every byte, fp32 [256, 2]. 4.13 bits a weight.
    """
    blocks = weight_DC.reshape(-1, BLOCK)
    largest = blocks.abs().amax(-1)
    mean = largest.mean().reshape(1)
    groups = F.pad(largest - mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
    codes, step = pack_int8(groups)
    values = torch.tensor(NF4, device=weight_DC.device)
    scaled = blocks / _scales(codes, step, mean, len(blocks)).clamp_min_(_TINY)[:, None]
    nearest = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    for low, high in pairwise(NF4):  # a binary search takes 5 times as long
        nearest += scaled > (low + high) / 2
    first, second = nearest.view(len(weight_DC), -1, 2).unbind(-1)
    pairs = torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=-1)
    return first * 16 + second, codes, step, mean, pairs


def unpack_nf4(
    bits: Tensor, codes: Tensor, step: Tensor, mean: Tensor, pairs: Tensor, dtype: torch.dtype
) -> Tensor:
    """[D, C]."""
    weight = _look_up(pairs.to(dtype), bits).view(-1, BLOCK)
    weight *= _scales(codes, step, mean, len(weight)).to(dtype)[:, None]
    return weight.view(len(bits), -1)


def _scales(codes: Tensor, step: Tensor, mean: Tensor, blocks: int) -> Tensor:
    """fp32 [A]; beside much larger ones a scale may come to nothing."""
    return ((codes * step).view(-1)[:blocks] + mean).clamp_min_(0)


def _look_up(table: Tensor, bytes_: Tensor) -> Tensor:
    """The entries, or pairs of entries, of ``table`` that ``bytes_`` number, one behind the other. A pair is read as one
    number of twice the size; of its values nothing is computed."""
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[table.nbytes // 256]
    found = table.reshape(-1).view(as_integers).index_select(0, bytes_.reshape(-1).int())
    return found.view(table.dtype)
