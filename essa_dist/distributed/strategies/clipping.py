"""Gradient clipping over whole tensors or shards of them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from essa_dist.distributed.collectives import all_reduce_sum, local


@dataclass(frozen=True)
class Clipping:
    """To an L2 norm of ``norm``, over everything trained or over the trunk and each head apart."""

    norm: float
    over: Literal["model", "module"]

    def part(self, name: str) -> str:
        """Which of the norms the tensor of this name counts for."""
        return name.split(".")[0] if self.over == "module" else "model"


@torch.no_grad()
def clip_gradients(
    named: dict[str, torch.nn.Parameter], clipping: Clipping, *, scale: float, sharded: bool
) -> Tensor:
    """Divide gradients by ``scale`` and clip them, in place; the largest norm found before clipping.

    ``sharded``: ranks hold different shards, so squares are summed over them. Formula as torch's
    ``clip_grad_norm_``. A norm that is not finite is returned as it is, and the gradients are then of no use.
    """
    gradients = {name: local(p.grad) for name, p in named.items() if p.grad is not None}
    return clip(gradients, clipping, scale=scale, sharded=sharded)


def clip(
    gradients: dict[str, Tensor], clipping: Clipping, *, scale: float, sharded: bool, unscale: bool = True
) -> Tensor:
    """``clip_gradients`` of these tensors, by name; without ``unscale`` somebody else divides by ``scale``."""
    parts: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        parts.setdefault(clipping.part(name), []).append(gradient)
    squares = torch.stack(
        [torch.stack(torch._foreach_norm(part)).float().square().sum() for part in parts.values()]
    )
    if sharded:
        squares = all_reduce_sum(squares)
    norms = squares.sqrt() / scale
    factors = (clipping.norm / (norms + 1e-6)).clamp(max=1.0) / (scale if unscale else 1.0)
    for factor, part in zip(factors, parts.values(), strict=True):
        torch._foreach_mul_(part, factor)
    return norms.max()
