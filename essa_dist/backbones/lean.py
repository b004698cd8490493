"""Keep less for the backward pass of frozen layers than autograd does; values of the forward pass are the plain layers'.

Exact: a gated MLP keeps its two halves and computes ``act(gate)``, a third of their size, again. In 8 bits, where asked for,
what nothing but an input gradient needs: GELU's derivative instead of its input, evenly in 256 steps over its range, and the
normalised input of a LayerNorm whose weight is frozen, as e4m3 beside 1 / deviation. There the gradients are approximate.
In a LayerNorm's input gradient the normalised input is only the direction that is taken away, one of C, so its coarse
steps hardly show; what does is half a step of GELU's derivative, at most 1 / 300.
Layers are the same objects with the same tensors; only their class is another one.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.mlp import GluMlp, SwiGLU
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from essa_dist.kernels import compiled, fused

Keep = Literal["exact", "8bit"]

E4M3 = torch.float8_e4m3fn
"""To 448; a normalised value is at most sqrt(C)."""
SHIFT, SCALE = 168, 300
"""GELU's derivative, exact or by tanh, lies within -0.129 and 1.129, and this moves it into 128 ... 512, where a bfloat16 is
told by its low byte: in steps of 1, from 256 (0.29) on of 2. 168 and what it is taken from are exact in bfloat16."""
HIGH_BYTE = 0x4300


def lean_layers(vit: Any, keep: Keep) -> None:
    """Change the layers of the blocks of ``vit`` that can keep less. Trained ones among them keep what they need.

    Not the norm behind them: what losses send back there may be nearly what it takes away, and then rounding is all there is.
    """
    for module in [module for block in vit.blocks for module in block.modules()]:
        kind = type(module)
        if kind in GATED:
            module.__class__ = GATED[kind]
        elif keep == "8bit" and kind in (nn.LayerNorm, LayerNorm) and len(module.normalized_shape) == 1:
            module.__class__ = LeanLayerNorm
        elif keep == "8bit" and kind is nn.GELU:
            module.__class__ = LeanGELU


def unkept(*tensors: Tensor) -> bool:
    """Whether no backward pass will come to ``tensors``."""
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


class LeanLayerNorm(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        trained = self.weight is not None and self.weight.requires_grad
        if unkept(x) or trained:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        y: Tensor = _Norm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        return y


class LeanGELU(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        if unkept(x):
            return super().forward(x)
        y: Tensor = _GELU.apply(x, self.approximate)  # type: ignore[no-untyped-call]
        return y


class LeanGluMlp(GluMlp):
    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fc1(x).chunk(2, dim=self.chunk_dim)
        gate, value = (second, first) if self.gate_last else (first, second)
        y: Tensor = self.drop2(self.fc2(self.norm(self.drop1(gated(gate, value, self.act)))))
        return y


class LeanSwiGLU(SwiGLU):
    def forward(self, x: Tensor) -> Tensor:
        product = gated(self.fc1_g(x), self.fc1_x(x), self.act)
        y: Tensor = self.drop2(self.fc2(self.norm(self.drop1(product))))
        return y


GATED: dict[type[nn.Module], type[nn.Module]] = {GluMlp: LeanGluMlp, SwiGLU: LeanSwiGLU}


def gated(gate: Tensor, value: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """``act(gate) * value``."""
    if unkept(gate, value):
        return act(gate) * value
    product: Tensor = _Gated.apply(gate, value, act)  # type: ignore[no-untyped-call]
    return product


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(fused(pack_normalised, x, trial=_norm_is_right)(x, mean, rstd), rstd, weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        packed, rstd, weight = ctx.saved_tensors
        dx = fused(norm_backward, dy, trial=_norm_is_right)(dy, packed, rstd, weight)
        return dx, None, dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None, None


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(fused(pack_derivative, x, trial=_gelu_is_right)(x, approximate))
        return F.gelu(x, approximate=approximate)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return fused(gelu_backward, dy, trial=_gelu_is_right)(dy, *ctx.saved_tensors), None


class _Gated(torch.autograd.Function):
    """``act(gate) * value``, of which both are kept, as views of one tensor, and the product's factor is not."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, value)
        ctx.act = act
        return act(gate) * value

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, value = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            factor = ctx.act(gate)
        (d_gate,) = torch.autograd.grad(factor, gate, dy * value)
        return d_gate, dy * factor.detach(), None


def pack_normalised(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The normalised input, e4m3."""
    return (x - mean).mul_(rstd).to(E4M3)


def unpack_normalised(packed: Tensor) -> Tensor:
    """bfloat16 of an e4m3, by its bits, for torch's own conversion on a CPU takes 10 times as long.

    Exact from 1 / 64 on; below, where e4m3 has no leading 1 and this takes one for granted, off by at most 1 / 128.
    """
    bits = packed.view(torch.int8).to(torch.int16).bitwise_left_shift_(4).bitwise_and_(-0x7810)
    return bits.add_(0x3C00).view(torch.bfloat16)  # 120 more in the exponent: its biases are 7 and 127


def norm_backward(dy: Tensor, packed: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
    """Gradient of a LayerNorm's input: torch's kernel, for an input that is normalised already; then the deviation."""
    normalised, one, zero = (
        unpack_normalised(packed).to(dy.dtype),
        torch.ones_like(rstd),
        torch.zeros_like(rstd),
    )
    shape, mask = dy.shape[-1:], [True, False, False]
    dx = torch.ops.aten.native_layer_norm_backward(dy, normalised, shape, zero, one, weight, None, mask)[0]
    return dx.mul_(rstd)  # type: ignore[no-any-return]


def pack_derivative(x: Tensor, approximate: str) -> Tensor:
    """GELU's derivative at ``x``, the low bytes of ``SHIFT + SCALE * derivative`` in bfloat16."""
    one = torch.ones((), dtype=x.dtype, device=x.device).expand_as(x)
    slope = torch.ops.aten.gelu_backward(one, x, approximate=approximate)
    placed = torch.add(torch.full((), SHIFT, dtype=x.dtype, device=x.device), slope, alpha=SCALE)
    return placed.to(torch.bfloat16).view(torch.int16).to(torch.uint8)


def gelu_backward(dy: Tensor, packed: Tensor) -> Tensor:
    """``dy`` times the derivative that was packed."""
    placed = packed.to(torch.int16).bitwise_or_(HIGH_BYTE).view(torch.bfloat16).sub_(SHIFT)
    return placed.to(dy.dtype).mul_(dy).mul_(1 / SCALE)


def _norm_is_right(device: torch.device) -> bool:
    """Of a few tokens; below compute capability 8.9 Triton knows no e4m3, and torch does."""
    x, dy = torch.randn(2, 1, 5, 64, device=device).bfloat16()
    weight = torch.rand(64, device=device).bfloat16()
    _, mean, rstd = torch.native_layer_norm(x, (64,), weight, None, 1e-6)
    packed = pack_normalised(x, mean, rstd)
    return _alike(pack_normalised, x, mean, rstd) and _alike(norm_backward, dy, packed, rstd, weight)


def _gelu_is_right(device: torch.device) -> bool:
    x, dy = torch.randn(2, 1, 5, 64, device=device).bfloat16()
    return _alike(pack_derivative, x, "none") and _alike(gelu_backward, dy, pack_derivative(x, "none"))


def _alike(function: Callable[..., Tensor], *args: Any) -> bool:
    """Whether ``function`` gives the same compiled, but for roundings."""
    found, expected = (one(*args).float() for one in (compiled(function), function))
    return bool((found - expected).norm() <= 0.05 * expected.norm())
