"""A timm vision transformer that takes masks and returns class and patch features.

Shapes: B images, N patches, C features.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from essa_dist.backbones.channels import adapt_statistics
from essa_dist.backbones.formats.report import LoadReport
from essa_dist.backbones.position import DINOv2PositionEmbedding
from essa_dist.errors import UsageError


class Features(NamedTuple):
    """Tokens after the final norm."""

    cls: Tensor
    """[B, C]"""
    patches: Tensor
    """[B, N, C], without class and register tokens"""


class Backbone(nn.Module):
    """``vit`` keeps timm's own forward, so every timm ViT works; masks enter by a hook behind its patch embedding."""

    weights_source: str = "random"
    """Where the weights came from, in words; set by ``build_backbone``."""
    weights_sha256: str | None = None
    """Hash of the weights file, where it was one."""
    load_report: LoadReport | None = None
    """What became of the tensors of the weights, where there were any."""
    channel_rule: str | None = None
    """How the weights were fitted to ``in_chans``, in words; None: they have as many channels."""
    adapter_settings: dict[str, Any] | None = None
    """Settings of the adapter whose modules are in it; None: a plain timm module tree."""
    adapter_seed: int = 0
    """The seed that adapter was injected with."""

    def __init__(
        self,
        vit: Any,  # a timm VisionTransformer; its attributes depend on the architecture
        *,
        name: str,
        pos_embed: str = "timm",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.name = name
        self.embed_dim: int = vit.embed_dim
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.image_size: int = vit.patch_embed.img_size[0]
        self.in_chans: int = vit.patch_embed.proj.in_channels
        shipped = adapt_statistics(*shipped_statistics(vit), self.in_chans)
        self.mean: tuple[float, ...] = tuple(mean or shipped[0])
        self.std: tuple[float, ...] = tuple(std or shipped[1])
        self.mask_token = nn.Parameter(torch.zeros(1, self.embed_dim))  # zero as in DINOv2's initialisation
        self._masks: Tensor | None = None
        vit.patch_embed.register_forward_hook(self._mask_patches)
        for block in self.vit.blocks:
            if hasattr(block.attn, "fused_attn"):
                block.attn.register_forward_pre_hook(_choose_attention)
            if getattr(block.attn, "q_bias", None) is not None:
                # timm would read qkv.weight without calling qkv: whatever an adapter did to qkv went unseen.
                block.attn.qkv_bias_separate = True
        if getattr(
            vit, "rope_mixed", False
        ):  # its learned frequencies are read by a method: make that a call
            vit.rope.forward = vit.rope.get_embed
            vit.rope.get_embed = vit.rope.__call__
        if pos_embed == "dinov2":
            self.vit._pos_embed = DINOv2PositionEmbedding(vit)

    def over_the_same_parameters(self) -> "Backbone":
        """A second module tree that holds the very same parameters: it can be changed, and costs no weights."""
        return copy.deepcopy(self, {id(p): p for p in self.parameters()})

    def _mask_patches(self, module: nn.Module, args: Any, patches: Tensor) -> Tensor:
        if self._masks is None:
            return patches
        masks = self._masks.reshape(*patches.shape[:-1], 1)  # patches are [B, H, W, C] at dynamic size
        return torch.where(masks, self.mask_token.to(patches.dtype), patches)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Features:
        """``images`` [B, 3, H, W], normalised, sides a multiple of ``patch_size``; ``masks`` bool [B, N]."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise UsageError(
                f"image size {height}x{width} is not a multiple of the patch size {self.patch_size} of {self.name}"
            )
        self._masks = masks
        try:
            tokens = self.vit(images)
        finally:
            self._masks = None
        return Features(tokens[:, 0], tokens[:, self.num_prefix_tokens :])


def shipped_statistics(vit: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels that timm's weights of this architecture were trained with; else ImageNet's."""
    shipped = vit.pretrained_cfg
    mean, std = shipped.get("mean", (0.485, 0.456, 0.406)), shipped.get("std", (0.229, 0.224, 0.225))
    return tuple(mean), tuple(std)


def _choose_attention(attention: Any, args: tuple[Tensor, ...]) -> None:
    # On a CPU the backward of bf16 scaled_dot_product_attention is slow: with it a training step of ViT-Ti
    # took about twice as long (2 cores, AMX). Elsewhere, and without gradients, it is the fast one. Decided at
    # every call, so that a block recomputed in the backward pass makes the choice of its first time.
    attention.fused_attn = args[0].device.type != "cpu" or not torch.is_grad_enabled()
