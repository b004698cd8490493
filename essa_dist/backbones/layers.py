"""Patch features of several blocks of one forward pass, for dense tasks.

Shapes: B images, H x W pixels, N patches in a grid of h x w, C features.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError


class Layers(NamedTuple):
    """Patch features of the blocks that were asked for, in that order."""

    patches: tuple[Tensor, ...]
    """[B, N, C] each, without class, register and prompt tokens"""
    grid: tuple[int, int]
    """(h, w) with N = h * w: patch i lies in row i // w"""

    def maps(self) -> list[Tensor]:
        """The same as images [B, C, h, w]."""
        return [x_BNC.transpose(1, 2).unflatten(2, self.grid) for x_BNC in self.patches]


def layer_features(
    backbone: Backbone, images: Tensor, blocks: Sequence[int] = (-1,), *, norm: bool = True
) -> Layers:
    """Patch features behind each of ``blocks`` (-1: the last one) for normalised ``images`` [B, 3, H, W].

    With ``norm`` each goes through the trunk's final norm, as in DINOv2's ``get_intermediate_layers``; those of the
    last block are then the patches of ``backbone(images)``. They are seen by hooks around whole blocks, so it is one
    ordinary forward pass with whatever an adapter put into it. Raises UsageError for a block that isn't there, and
    what ``backbone(images)`` raises.
    """
    depth, patch = len(backbone.vit.blocks), backbone.patch_size
    if wrong := [i for i in blocks if not -depth <= i < depth]:
        raise UsageError(f"block {wrong[0]}: {backbone.name} has blocks {-depth}..{depth - 1}")
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    seen: dict[int, Tensor] = {}
    wanted = {i % depth for i in blocks}
    hooks = [backbone.vit.blocks[i].register_forward_hook(partial(_see, seen, i)) for i in sorted(wanted)]
    try:
        last = backbone(images).patches
    finally:
        for hook in hooks:
            hook.remove()
    # Every token that an adapter or an architecture adds stands before the patches.
    inner = {i: x[:, -grid[0] * grid[1] :] for i, x in seen.items()}
    if norm:
        inner = {i: last if i == depth - 1 else backbone.vit.norm(x) for i, x in inner.items()}
    return Layers(tuple(inner[i % depth] for i in blocks), grid)


def _see(seen: dict[int, Tensor], index: int, block: nn.Module, args: Any, output: Tensor) -> None:
    seen[index] = output


def at_depths(depth: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The blocks behind which these shares of ``depth`` blocks are done: 0.5 of 12 is block 5, counted from 0."""
    return tuple(max(int(share * depth + 0.5), 1) - 1 for share in shares)
