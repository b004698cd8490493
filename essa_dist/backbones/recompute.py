"""Activation checkpointing: a block keeps its input only, and is computed again in the backward pass.

It takes place inside the block's call, in its ``forward``: hooks on the block run once, around it. FSDP2 and ZeRO-3
gather the block's tensors in such hooks, and gather them anew before its backward pass, where it is computed again.
Modules inside are entered again, with their hooks, so adapters and branches do then what they did the first time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputed:
    """Takes the place of ``block.forward``. An object, not a closure, so that deep copies call their own block."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():  # nothing is kept for a backward pass that won't come
            return type(self.block).forward(self.block, *args, **kwargs)
        # What hooks on the block put over its own tensors (the branch and its cast), and will have taken away by then.
        own = vars(self.block)
        over = {name: own[name] for name in self.block._parameters if name in own}
        # Reentrant, it would give no gradient to an adapter behind an input that needs none.
        return checkpoint(self._run, over, args, kwargs, use_reentrant=False)

    def _run(self, over: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = vars(self.block)
        own |= over
        try:
            output = type(self.block).forward(self.block, *args, **kwargs)
            return _End.apply(output)  # type: ignore[no-untyped-call]
        finally:
            for name in over:
                own.pop(name, None)


class _End(torch.autograd.Function):
    """Identity behind the block's last layer, the first thing that its backward pass comes to.

    It keeps a tensor, and torch recomputes when a kept one is first asked for. Without it that were one of the last
    layer, when ZeRO-3 has gathered that layer's tensors for the backward pass: the recomputation, which gathers and
    frees them too, would leave it without. It is the last one kept, so all layers are left before torch stops.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.new_empty(()))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _ = ctx.saved_tensors
        return grads[0]


def recompute_blocks(vit: Any) -> None:
    """Compute every block of ``vit`` again in the backward pass; drop path draws the same numbers both times."""
    for block in vit.blocks:
        block.forward = Recomputed(block)
