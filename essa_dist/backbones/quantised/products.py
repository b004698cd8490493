"""Products with a frozen, packed weight: forward and input gradient. Nothing is kept for the latter but the packed weight.

Shapes: C in_features, D out_features, M tokens.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.backbones.quantised.codes import E4M3, E4M3_MAX, row_scale
from essa_dist.kernels import fused, works

Unpack = Callable[..., Tensor]


class UnpackedProduct(torch.autograd.Function):
    """``F.linear`` with the weight unpacked, in the input's precision, for this product and again for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, unpack: Unpack, *packed: Tensor) -> Tensor:
        # The parameters themselves: FSDP2 and ZeRO-3 have put others' memory into them when backward comes.
        ctx.save_for_backward(*packed)
        ctx.unpack = unpack
        return F.linear(x, unpack(*packed, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        packed = ctx.saved_tensors
        dx = dy @ ctx.unpack(*packed, dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, _bias_gradient(ctx, dy), None, *[None] * len(packed)


class ScaledProduct(torch.autograd.Function):
    """Products in 8 bits by ``torch._scaled_mm``: weights with a scale a row, activations and gradients with one a token.

    The input gradient sums over the rows of the weight, where scales of rows can't be taken out of the sum: they go into
    the gradient before it is packed, ``dx = pack(dy * scale) @ bits``. So one copy of the weight serves both products. The
    second wants it transposed, as tensor cores of 8 bits read along the sum: made anew each time, it costs D * C bytes
    read and written, some 400 / M of the product's time, and in memory D * C bytes of one layer while it runs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, bits: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(bits, scale)
        x_MC, x_scale = fused(pack_tokens, x)(x.flatten(0, -2))
        y = _scaled_mm(x_MC, x_scale, bits.view(E4M3).t(), scale.view(1, -1), bias, fast=True)
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        bits, scale = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            dy_MD, dy_scale = fused(pack_tokens, dy)(dy.flatten(0, -2), scale.view(1, -1))
            columns = bits.t().contiguous().t().view(E4M3)
            ones = torch.ones(1, bits.shape[1], device=bits.device)
            dx = _scaled_mm(dy_MD, dy_scale, columns, ones, None, fast=False)
            dx = dx.to(dy.dtype).view(*dy.shape[:-1], -1)
        return dx, _bias_gradient(ctx, dy), None, None


def pack_tokens(tokens_MC: Tensor, factor_1C: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``tokens_MC * factor_1C`` as e4m3, and the scale of each token, fp32 [M, 1]."""
    # Of two bytes the steps are finer than e4m3's by far; fp16 has not the range for scales.
    wide = tokens_MC if tokens_MC.dtype is torch.bfloat16 else tokens_MC.float()
    if factor_1C is not None:
        wide = wide * factor_1C.to(wide.dtype)
    scale = row_scale(wide, E4M3_MAX)
    return (wide / scale.to(wide.dtype)).to(E4M3), scale.to(wide.dtype).float()


def _scaled_mm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, *, fast: bool
) -> Tensor:
    """bf16, the only result with scales a row on CUDA. ``fast``: sums with fewer bits on Hopper, good enough forward."""
    bias = None if bias is None else bias.to(torch.bfloat16)
    product: Tensor = torch._scaled_mm(
        a.contiguous(), b, a_scale, b_scale.contiguous(), bias, out_dtype=torch.bfloat16, use_fast_accum=fast
    )
    return product


def _bias_gradient(ctx: Any, dy: Tensor) -> Tensor | None:
    return dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def multiplies_fp8(device: torch.device) -> bool:
    """Whether 8-bit products with scales a row are in this device's hardware, and right.

    A compiled block takes the answer for granted: else the compiler would look into it, and make the trial a part of the block.
    """
    return _has_fp8(device) and works("torch._scaled_mm of engine.trunk=fp8", _products_are_right, device)


@cache
def _has_fp8(device: torch.device) -> bool:
    """NVIDIA's have from 8.9 on. A CPU's torch has since 2.12, as emulation that takes 20 times as long as bf16."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def _products_are_right(device: torch.device) -> bool:
    """A product and its input gradient against the same of unpacked numbers."""
    weight, x, dy = (torch.randn(size, device=device).bfloat16() for size in ((64, 32), (48, 32), (48, 64)))
    bits, scale = pack_tokens(weight)
    plain = bits.float() * scale
    x.requires_grad_()
    y = ScaledProduct.apply(x, None, bits.view(torch.uint8), scale)  # type: ignore[no-untyped-call]
    (dx,) = torch.autograd.grad(y, x, dy)
    pairs = ((y, x.detach().float() @ plain.T), (dx, dy.float() @ plain))
    return all(bool((a - b).norm() < 0.1 * b.norm()) for a, b in pairs)
