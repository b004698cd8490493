"""Several groups of images, of different sizes, in one forward pass of a plain ViT.

Their tokens stand behind each other in one sequence [1, T, C]: what treats each token alone (norms, linear layers, the MLP,
most adapters) runs once for all, and a wrapper gathers each block once. Only attention knows where an image ends, and
stochastic depth, whose numbers are drawn before the pass, group by group, in the order of a pass for each.
The layout of the sequence goes through a block as its ``attn_mask``, so it is there too when a block is computed again.
Shapes: B images and N tokens of a group, T tokens of all, C features, H heads, D features of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from essa_dist.backbones.attention import FastAttention
from essa_dist.kernels import works


class Group(NamedTuple):
    """Images of one size."""

    images: Tensor
    """[B, 3, H, W]"""
    masks: Tensor | None = None
    """[B, N] bool, of patches"""
    seed: int | None = None
    """What its random numbers follow from; None: the global state."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the images of each group are in a sequence."""

    sizes: tuple[tuple[int, int], ...]
    """(B, N) of each group."""
    factors: tuple[Tensor, ...] = ()
    """[1, T, 1] for each stochastic depth that is active, in the order of the blocks: 0 or 1 / (the share that is kept)."""
    ends: Tensor | None = None
    """[images + 1] int32: where each image begins, and the end; where attention over sequences of any length can be had."""

    def split(self, x_1T: Tensor) -> list[Tensor]:
        """[1, T, ...] to views [B, N, ...]."""
        parts = x_1T[0].split([images * tokens for images, tokens in self.sizes])
        return [part.unflatten(0, size) for part, size in zip(parts, self.sizes, strict=True)]


def join(parts: Sequence[Tensor]) -> Tensor:
    """The inverse of :meth:`Layout.split`, a copy."""
    return torch.cat([part.flatten(0, 1) for part in parts])[None]


class PackedAttention(FastAttention):
    """Looks at each image alone, and tells the stochastic depths of its block which layout they are in."""

    depths: tuple[Any, ...] = ()  # PackedDropPath; a tuple, so that they are not modules of this one

    def mix(self, qkv: Tensor, attn_mask: Any, *, is_causal: bool) -> Tensor:
        layout = attn_mask if isinstance(attn_mask, Layout) else None
        for depth in self.depths:
            depth.layout = layout
        if layout is None:
            return super().mix(qkv, attn_mask, is_causal=is_causal)
        drops = self.training and self.attn_drop.p > 0
        if layout.ends is not None and self.head_dim % 8 == 0 and self.head_dim <= 256 and not drops:
            return self._varlen(qkv[0], layout, layout.ends)[None]
        groups = layout.split(qkv)
        return join([super(PackedAttention, self).mix(part, None, is_causal=False) for part in groups])

    def _varlen(self, qkv_T3HD: Tensor, layout: Layout, ends: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = qkv_T3HD.unbind(1)
        q, k = self.q_norm(q), self.k_norm(k)
        longest = max(tokens for _, tokens in layout.sizes)
        mixed = varlen_attn(q, k, v, ends, ends, longest, longest, scale=self.scale)
        assert isinstance(mixed, Tensor)
        return mixed.flatten(1)


class PackedDropPath(DropPath):
    """Takes or leaves an image whole, also where it is some tokens of a sequence."""

    place: Any  # in ``Layout.factors``
    layout: Layout | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.layout is None or not self.training:
            dropped: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        else:
            dropped = x * self.layout.factors[self.place]
        return dropped


class PackedForward:
    """Takes the place of ``vit.forward``: for a tuple of groups it gives the tokens of each, [B, N, C]."""

    def __init__(self, vit: Any) -> None:
        self.vit = vit

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        vit = self.vit
        if not isinstance(images, tuple):
            return type(vit).forward(vit, images, *args, **kwargs)
        parts, factors = zip(*(self._enter(group) for group in images), strict=True)
        sizes = tuple((len(part), part.shape[1]) for part in parts)
        x_1TC = join(parts)
        ends = sequence_ends(sizes, x_1TC.device) if flash_varlen(x_1TC.device, x_1TC.dtype) else None
        layout = Layout(sizes, tuple(join(each) for each in zip(*factors, strict=True)), ends)
        for block in vit.blocks:
            x_1TC = block(x_1TC, attn_mask=layout)
        return layout.split(vit.forward_head(vit.norm(x_1TC)))

    def _enter(self, group: Group) -> tuple[Tensor, list[Tensor]]:
        """Tokens [B, N, C] of a group as the first block gets them, and what it draws for stochastic depth, [B, N, 1] each."""
        vit = self.vit
        with drawing_from(group.seed, group.images.device):
            tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(group.images))))
            ones = tokens.new_ones(len(tokens), 1, 1)
            # By the module itself, on ones: its numbers, in its order, whatever its settings.
            active = [depth for depth in depths_of(vit) if depth.training]
            drawn: list[Tensor] = [DropPath.forward(depth, ones) for depth in active]  # type: ignore[no-untyped-call]
        return tokens, [factor.expand(-1, tokens.shape[1], -1) for factor in drawn]


def depths_of(vit: Any) -> list[PackedDropPath]:
    """The stochastic depths of ``vit``, in the order in which a pass comes to them."""
    return [
        path
        for block in vit.blocks
        for path in (block.drop_path1, block.drop_path2)
        if isinstance(path, PackedDropPath)
    ]


def pack(vit: Any) -> None:
    """Let ``vit`` take groups of images, as :func:`why_not` allows. What it computes for a tensor of images stays as it is.

    To be called when adapters are in place. Layers remain the same objects with the same tensors, of another class.
    """
    count = 0
    for block in vit.blocks:
        paths: list[Any] = [
            path for path in (block.drop_path1, block.drop_path2) if isinstance(path, DropPath)
        ]
        for path in paths:
            path.__class__ = PackedDropPath
            path.place, count = count, count + 1
        block.attn.__class__ = PackedAttention
        block.attn.depths = tuple(paths)
    vit.forward = PackedForward(vit)


def why_not(vit: Any) -> str | None:
    """Why the groups can't go through ``vit`` together; None: they can."""
    if (kind := type(vit)) is not VisionTransformer:
        return f"{kind.__name__} has a forward pass of its own"
    for block in vit.blocks:
        kinds = type(block), type(block.attn)
        if kinds[0] is not Block or kinds[1] not in (Attention, FastAttention, PackedAttention):
            return f"{kinds[0].__name__} with {kinds[1].__name__} can't be told where an image ends"
    for module in vit.modules():
        if getattr(module, "sequence_wise", False):
            return f"{type(module).__name__} changes each sequence"
    if vit.global_pool or vit.attn_pool is not None or vit.grad_checkpointing:
        return "it pools its tokens, or timm's own checkpointing is on"
    return None


def draws_for_tokens(vit: Any) -> bool:
    """Whether some layer of a block draws numbers for each token: dropout. They depend on what stands beside a token."""
    return any(
        module.training and max(_rate(module, "p"), _rate(module, "dropout")) > 0
        for block in vit.blocks
        for module in block.modules()
    )


def _rate(module: nn.Module, name: str) -> float:
    rate = getattr(module, name, 0.0)
    return rate if isinstance(rate, float) else 0.0


@cache
def flash_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's attention over sequences of any length can be had: FlashAttention, on CUDA from Ampere on."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    if find_spec("torch.nn.attention.varlen") is None:  # torch 2.10; it takes a scale from 2.11 on
        return False
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return works("torch's attention over sequences of any length", _varlen_is_right, device)


def _varlen_is_right(device: torch.device) -> bool:
    """Two sequences in one, forward and backward, against each alone."""
    from torch.nn.attention.varlen import varlen_attn

    qkv = torch.randn(3, 12, 2, 16, device=device).bfloat16().requires_grad_()
    ends = torch.tensor([0, 5, 12], dtype=torch.int32, device=device)
    q, k, v = qkv.unbind(0)
    together = varlen_attn(q, k, v, ends, ends, 7, 7, scale=0.25)
    assert isinstance(together, Tensor)
    alone = torch.cat([_attend(q[part], k[part], v[part]) for part in (slice(5), slice(5, 12))])
    ways = (together, alone)
    gradients = [torch.autograd.grad(way.float().square().sum(), qkv)[0] for way in ways]
    return all(bool((a - b).norm() < 0.03 * b.norm()) for a, b in (ways, gradients))


def _attend(q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor) -> Tensor:
    q, k, v = (one.transpose(0, 1) for one in (q_NHD, k_NHD, v_NHD))
    return F.scaled_dot_product_attention(q, k, v, scale=0.25).transpose(0, 1)


@lru_cache(maxsize=8)
def sequence_ends(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """[images + 1] int32: where each image begins, and the end. Kept, for each new one waits for a copy to the device."""
    lengths = [tokens for images, tokens in sizes for _ in range(images)]
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


@contextmanager
def drawing_from(seed: int | None, device: torch.device) -> Iterator[None]:
    """Inside, random numbers follow from ``seed``, and the global state stays as it was; None: as ever."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
