"""Linear layers in bf16 on a CPU, with one pass less than torch makes; the same products, rounded once.

torch copies the bias to each row of the output before a product is added to it; oneDNN's own layer takes the bias along:
0.78 to 0.97 of a layer's time, 0.95 to 1.0 of a step's (ViT-S, 2,056 rows, two cores with AMX). What was tried and gains
nothing: to turn an operand of a weight's gradient first, which is faster on one core, and slower on two.
Layers are the same objects with the same tensors; only their class is another one.
Shapes: N rows, C in_features, D out_features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from essa_dist.kernels import works


def quicken_linears(module: nn.Module) -> None:
    """Change the plain linear layers of ``module``, which computes in bf16 on a CPU; where that has no bf16, leave them."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return
    if not works("oneDNN's linear layer", _tried, torch.device("cpu")):
        return
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = CPULinear


class CPULinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if (
            x.dtype is not torch.bfloat16
            or self.weight.dtype is not torch.bfloat16
            or torch.compiler.is_compiling()
        ):
            return super().forward(x)
        y: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_DC: Tensor, bias_D: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight_DC if needs_x else None)
        return product(x, weight_DC, bias_D)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_DC = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dy_ND = dy.flatten(0, -2)
        return (
            (dy_ND @ weight_DC).view(*dy.shape[:-1], -1) if needs_x else None,
            dy_ND.T @ x.flatten(0, -2) if needs_weight else None,
            dy_ND.sum(0) if needs_bias else None,
        )


def product(x: Tensor, weight_DC: Tensor, bias_D: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``."""
    if bias_D is None:
        return F.linear(x, weight_DC)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_DC, bias_D, "none", [], "")
    return y


def _tried(device: torch.device) -> bool:
    x, weight, bias = torch.eye(16), torch.arange(256.0).view(16, 16), torch.ones(16)
    found = product(*(tensor.to(device, torch.bfloat16) for tensor in (x, weight, bias)))
    return bool(torch.equal(found.float(), weight.T.to(torch.bfloat16).float() + 1))
