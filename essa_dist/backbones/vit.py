"""A timm vision transformer that takes masks and returns class and patch features.

Shapes: B images, N patches, C features.
"""

import copy
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from essa_dist.backbones.attention import choose_attention
from essa_dist.backbones.channels import adapt_statistics
from essa_dist.backbones.formats.report import LoadReport
from essa_dist.backbones.packed import Group, drawing_from, draws_for_tokens
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
    packs: Literal["auto"] | bool = False
    """Whether groups of images go through together; auto: on CUDA. Set where ``vit`` was made ready for it."""

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
        self._masks: Iterator[Tensor | None] = iter(())  # of the calls of the patch embedding to come
        vit.patch_embed.register_forward_hook(self._mask_patches)
        for block in self.vit.blocks:
            if hasattr(block.attn, "fused_attn"):
                block.attn.register_forward_pre_hook(choose_attention)
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
        masks = next(self._masks, None)
        if masks is None:
            return patches
        masks = masks.reshape(*patches.shape[:-1], 1)  # patches are [B, H, W, C] at dynamic size
        return torch.where(masks, self.mask_token.to(patches.dtype), patches)

    def forward(
        self, images: Tensor, masks: Tensor | None = None, *, groups: tuple[Group, ...] = ()
    ) -> Features | list[Features]:
        """``images`` [B, 3, H, W], normalised, sides a multiple of ``patch_size``; ``masks`` bool [B, N].

        With ``groups``, of which ``images`` are the first one's, it gives the features of each, from one pass.
        """
        for group in groups or (Group(images),):
            self._check_size(group.images)
        self._masks = iter([group.masks for group in groups] or [masks])
        try:
            tokens = self.vit(groups or images)
        finally:
            self._masks = iter(())
        return [self._features(part) for part in tokens] if groups else self._features(tokens)

    def each(self, *groups: Group) -> list[Features]:
        """The features of each group: from one pass for all where ``packs`` says so, else from one pass for each.

        By calls of this module, so that hooks on it run. Which of the two it was can be told by rounding only; where
        dropout inside the blocks draws numbers for each token, by those numbers. Then a group with a seed, which has to
        draw what it would alone, keeps all of them apart.
        """
        packs = groups[0].images.is_cuda if self.packs == "auto" else self.packs
        alone = len(groups) == 1 or (any(g.seed is not None for g in groups) and draws_for_tokens(self.vit))
        if packs and not alone:
            together: list[Features] = self(groups[0].images, groups=groups)
            return together
        found = []
        for images, masks, seed in groups:
            with drawing_from(seed, images.device):
                found.append(self(images, masks))
        return found

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise UsageError(
                f"image size {height}x{width} is not a multiple of the patch size {self.patch_size} of {self.name}"
            )

    def _features(self, tokens: Tensor) -> Features:
        return Features(tokens[:, 0], tokens[:, self.num_prefix_tokens :])


def shipped_statistics(vit: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels that timm's weights of this architecture were trained with; else ImageNet's."""
    shipped = vit.pretrained_cfg
    mean, std = shipped.get("mean", (0.485, 0.456, 0.406)), shipped.get("std", (0.229, 0.224, 0.225))
    return tuple(mean), tuple(std)
