"""Activation checkpointing: a block, or its MLP, keeps its input only, and is computed again in the backward pass.

It takes place inside the block's call, in its ``forward``: hooks on the block run once, around it. FSDP2 and ZeRO-3
gather the block's tensors in such hooks, and gather them anew before its backward pass, where it is computed again.
Modules inside are entered again, with their hooks, so adapters and branches do then what they did the first time.
"""

from typing import Any, Literal

import torch
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from essa_dist.errors import UsageError

Recompute = Literal["none", "mlp", "blocks"] | int


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
        # Reentrant, it would give no gradient to an adapter behind an input that needs none. Inputs one by one, for hooks of
        # others to see what is kept of them: engine.offload moves it.
        return checkpoint(self._run, over, kwargs, *args, use_reentrant=False)

    def _run(self, over: dict[str, Any], kwargs: dict[str, Any], *args: Any) -> Any:
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


class RecomputedMlp:
    """Takes the place of ``mlp.forward``: up to its last layer, which, frozen, keeps nothing, it is computed again.

    So the cost is one product with ``fc1``, and what is kept is the MLP's input, one token width in place of four.
    """

    def __init__(self, mlp: nn.Module) -> None:
        self.mlp = mlp

    def __call__(self, x: Tensor) -> Tensor:
        mlp: Any = self.mlp
        if not torch.is_grad_enabled():
            return type(mlp).forward(mlp, x)  # type: ignore[no-any-return]
        hidden = checkpoint(self._inside, x, use_reentrant=False)
        output: Tensor = mlp.drop2(mlp.fc2(hidden))
        return output

    def _inside(self, x: Tensor) -> Tensor:
        own = vars(self.mlp)
        own |= {"fc2": _same, "drop2": _same}  # found before the modules of these names
        try:
            return _End.apply(type(self.mlp).forward(self.mlp, x))  # type: ignore[no-any-return, no-untyped-call]
        finally:
            del own["fc2"], own["drop2"]


def _same(x: Tensor) -> Tensor:
    return x


def recompute(vit: Any, what: Recompute) -> None:
    """Compute every block of ``vit`` again in the backward pass, every so many-th, their MLPs, or nothing.

    Raises UsageError for MLPs of a ViT whose blocks have others than timm's usual ones.
    """
    if what == "mlp":
        mlps: list[Any] = [module for module in vit.modules() if isinstance(module, Mlp | GluMlp | SwiGLU)]
        if not mlps:
            raise UsageError(
                "engine.recompute=mlp: this backbone has no MLP of timm's usual kinds; use blocks"
            )
        for mlp in mlps:
            mlp.forward = RecomputedMlp(mlp)
    elif what != "none":
        recompute_blocks(vit, every=1 if what == "blocks" else what)


def recompute_blocks(vit: Any, *, every: int = 1) -> None:
    """Compute every block of ``vit`` again in the backward pass; drop path draws the same numbers both times.

    With ``every`` > 1 only block ``every - 1``, ``2 * every - 1`` ...; the first blocks keep least anyway.
    """
    for block in vit.blocks[every - 1 :: every]:
        block.forward = Recomputed(block)
