"""Attention of plain ViTs with fewer copies: the same numbers up to rounding, and it keeps less.

Shapes: B images, N tokens, H heads, D features of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn


class FastAttention(Attention):
    """timm's layer whose step between its linear layers is :meth:`mix`; take it by ``attention.__class__ = FastAttention``."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        mixed = self.norm(self.mix(qkv, attn_mask, is_causal=is_causal))
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        out: Tensor = self.proj_drop(self.proj(mixed))
        return out

    def mix(self, qkv_BN3HD: Tensor, attn_mask: Tensor | None, *, is_causal: bool) -> Tensor:
        """What each token takes from the others, [B, N, H * D]."""
        rate = self.attn_drop.p if self.training else 0.0
        normed = not isinstance(self.q_norm, nn.Identity)
        if not (self.fused_attn or normed or rate or is_causal) and attn_mask is None:
            mixed: Tensor = ExplicitAttention.apply(qkv_BN3HD, self.scale)  # type: ignore[no-untyped-call]
            return mixed
        q, k, v = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask, rate, is_causal, scale=self.scale)
        return mixed.transpose(1, 2).flatten(2)


class ExplicitAttention(torch.autograd.Function):
    """softmax(scale * q k^T) v by matrix products, for CPUs, where the backward pass of torch's fused kernel is slow in bf16.

    Against the same in single operations, fp32 as bf16: no scaled copy of q, one copy of q, k and v together instead of
    several, products written where they are needed.
    """

    @staticmethod
    def forward(ctx: Any, qkv_BN3HD: Tensor, scale: float) -> Tensor:
        B, N, _, H, D = qkv_BN3HD.shape
        qkv = qkv_BN3HD.permute(2, 0, 3, 1, 4).reshape(3, B * H, N, D)
        q, k, v = qkv.unbind(0)
        shares = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.mT, beta=0, alpha=scale)
        torch.softmax(shares, -1, out=shares)
        ctx.save_for_backward(qkv, shares)
        ctx.scale, ctx.heads = scale, H
        mixed: Tensor = torch.bmm(shares, v).unflatten(0, (B, H)).transpose(1, 2).flatten(2)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        qkv, shares = ctx.saved_tensors
        q, k, v = qkv.unbind(0)
        grad = grad.unflatten(-1, (ctx.heads, -1)).transpose(1, 2).flatten(0, 1)
        d_qkv = torch.empty_like(qkv)
        dq, dk, dv = d_qkv.unbind(0)
        torch.bmm(shares.mT, grad, out=dv)
        d_scores = torch._softmax_backward_data(torch.bmm(grad, v.mT), shares, -1, shares.dtype)
        torch.baddbmm(dq, d_scores, k, beta=0, alpha=ctx.scale, out=dq)
        torch.baddbmm(dk, d_scores.mT, q, beta=0, alpha=ctx.scale, out=dk)
        return d_qkv.unflatten(1, (-1, ctx.heads)).permute(1, 3, 0, 2, 4), None


def choose_attention(attention: Any, args: tuple[Tensor, ...]) -> None:
    """A hook before attention: whether torch's fused kernel is the fast one here.

    On a CPU with AMX its backward pass is slow in bf16: with it a training step of ViT-Ti took about twice as long. In fp32,
    and without gradients, it is the fast one. Decided at every call, so that a block recomputed in the backward pass makes
    the choice of its first time.
    """
    x = args[0]
    attention.fused_attn = x.device.type != "cpu" or x.dtype == torch.float32 or not torch.is_grad_enabled()


def fast_attention(vit: Any) -> None:
    """Make timm's attention layers of ``vit`` fast ones; others stay what they are."""
    for block in vit.blocks:
        if type(getattr(block, "attn", None)) is Attention:
            block.attn.__class__ = FastAttention
