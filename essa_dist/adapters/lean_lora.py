"""LoRA's layers with fewer passes over their outputs; what they compute is PEFT's, up to rounding.

PEFT multiplies the change B A x by its scale and adds it to the output, each time into a new tensor; a change of q and v
alone is filled up with zeros before. Here the scale goes to A x, which is thin, and the change is added to the rows it
belongs to, in place. On a CPU dropout draws 16 bits a number from torch's generator, not one of its numbers: a fifth of
the time. So it draws others, and its rate is a multiple of 1 / 65,536, by which what is kept is scaled.
Layers are the same objects with the same tensors; only their class is another one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from essa_dist.adapters.factors import Up
from essa_dist.adapters.lora import NAME

HALF = 1 << 15
"""What lies between an int16 and the number of its bits."""


class LeanLoRALinear(Linear):
    """PEFT's layer around a frozen linear one, with one adapter that is not DoRA."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or torch.compiler.is_compiling():
            merged: Tensor = super().forward(x, *args, **kwargs)
            return merged
        shape, x = (
            x.shape[:-1],
            x.flatten(0, -2),
        )  # of rows the product is no view: autograd would copy its gradient
        output: Tensor = self.base_layer(x, *args, **kwargs)
        down, up, dropout = self.lora_A[NAME], self.lora_B[NAME], self.lora_dropout[NAME]
        scale = self.scaling[NAME]
        if x.is_cpu and isinstance(dropout, nn.Dropout) and dropout.training:
            kept, rate = keep(x, dropout.p)
            x, scale = x * kept, scale / rate
        else:
            x = dropout(x)
        hidden = down(x) * scale
        if isinstance(up, Up):
            output = add_(output, up.rows, up.changes(hidden))
        else:
            output = add_(output, [range(output.shape[-1])], [up(hidden)])
        return output.unflatten(0, shape)  # type: ignore[no-any-return]


def lean_lora(layer: nn.Module) -> None:
    """Change the LoRA layers inside that can do with less; DoRA and PiSSA stay as they are."""
    for module in layer.modules():
        if type(module) is Linear and not module.use_dora.get(NAME) and set(module.lora_A) == {NAME}:
            up = module.lora_B[NAME]
            if not (isinstance(up, Up) and up.keep):
                module.__class__ = LeanLoRALinear


def keep(x: Tensor, p: float) -> tuple[Tensor, float]:
    """1 where a number of ``x`` is kept and 0 where it is dropped, in its precision; and the share that is kept."""
    dropped = round(p * 2 * HALF)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    words.random_(torch.iinfo(torch.int64).min, None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(bits, dropped - HALF, out=torch.empty_like(x))
    return kept, 1 - dropped / (2 * HALF)


def add_(output: Tensor, rows: Sequence[range], changes: Sequence[Tensor]) -> Tensor:
    """``output`` [.., D], of which nobody else knows, with ``changes`` [.., len(rows)] added to their rows in place."""
    added: Tensor = _Add.apply(output, rows, *changes)  # type: ignore[no-untyped-call]
    return added


class _Add(torch.autograd.Function):
    """In place without autograd's own way for views, which copies the whole gradient once for each."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, rows: Sequence[range], *changes: Tensor) -> Tensor:
        ctx.rows = rows
        ctx.mark_dirty(output)
        for part, change in zip(rows, changes, strict=True):
            output[..., part.start : part.stop].add_(change)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, *(gradient[..., part.start : part.stop] for part in ctx.rows)
