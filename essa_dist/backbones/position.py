"""Position embeddings at another input size than the native one, by DINOv2's rule.

timm asks the bicubic interpolation for an exact output size, with antialiasing. DINOv2 hands it a scale factor
of (grid + 0.1) / native grid and no antialiasing, which samples at slightly other points; released DINOv2
weights were trained that way (interpolate_offset 0.1). Shapes: B images, H x W patches, C features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

INTERPOLATE_OFFSET = 0.1


def interpolate_dinov2(patches_1NC: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """[1, native H * W, C] to [1, grid H * W, C]. Source: DINOv2's ``interpolate_pos_encoding``."""
    if grid == native:
        return patches_1NC
    image = patches_1NC.float().reshape(1, *native, -1).permute(0, 3, 1, 2)
    scale = tuple((new + INTERPOLATE_OFFSET) / old for new, old in zip(grid, native, strict=True))
    resized = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=False)
    assert resized.shape[-2:] == grid, f"interpolated to {tuple(resized.shape[-2:])}, wanted {grid}"
    return resized.permute(0, 2, 3, 1).flatten(1, 2).to(patches_1NC.dtype)


class DINOv2PositionEmbedding:
    """Replaces ``VisionTransformer._pos_embed`` of one model by the rule above."""

    def __init__(self, vit: VisionTransformer) -> None:
        self.vit: Any = vit

    def __call__(self, x_BHWC: Tensor) -> Tensor:
        vit = self.vit
        n_images, height, width, _ = x_BHWC.shape
        with_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        prefix, patches = vit.pos_embed[:, :with_prefix], vit.pos_embed[:, with_prefix:]
        patches = interpolate_dinov2(patches, tuple(vit.patch_embed.grid_size), (height, width))
        tokens = x_BHWC.flatten(1, 2)
        lead = [t.expand(n_images, -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
        if vit.no_embed_class:
            tokens = torch.cat([*lead, tokens + patches], dim=1)
        else:
            tokens = torch.cat([*lead, tokens], dim=1) + torch.cat([prefix, patches], dim=1)
        out: Tensor = vit.pos_drop(tokens)
        return out
