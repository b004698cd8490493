"""What a model sees in an image: patch features as colours, and where the class token looks.

Shapes: B images, N patches (h x w of them), C features, H heads, T tokens (prefix + patches).
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.attention import Attention
from torch import Tensor, nn

from essa_dist.backbones import Backbone

Matrix = NDArray[np.float64]


class Look(NamedTuple):
    """What one forward pass shows."""

    patches: Tensor
    """[B, N, C], after the final norm"""
    attention: Tensor | None
    """[B, H, N]: share of the class token's attention that each patch gets; None: see :func:`last_attention`"""


@torch.no_grad()
def look(backbone: Backbone, images: Tensor) -> Look:
    """Run ``backbone`` on ``images`` [B, 3, H, W] (normalised) one by one, to bound the memory."""
    looks = [_look_at_one(backbone, image[None]) for image in images]
    rows = [one.attention for one in looks if one.attention is not None]
    return Look(torch.cat([one.patches for one in looks]), torch.cat(rows) if rows else None)


def _look_at_one(backbone: Backbone, image: Tensor) -> Look:
    attention = last_attention(backbone.vit)
    if attention is None:
        return Look(backbone(image).patches, None)
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        patches = backbone(image).patches
    finally:
        hook.remove()
    return Look(patches, cls_rows(attention, seen[-1])[:, :, backbone.num_prefix_tokens :])


def last_attention(vit: nn.Module) -> Attention | None:
    """The last block's attention where it is timm's plain one (fused qkv, one softmax), else None."""
    attention = getattr(vit.blocks[-1], "attn", None)  # type: ignore[index]  # a Sequential, to nn.Module a Tensor
    return attention if isinstance(attention, Attention) else None


@torch.no_grad()
def cls_rows(attention: Attention, x_BTC: Tensor) -> Tensor:
    """Attention of the first token (CLS) over all tokens, [B, H, T]; each row sums to 1.

    ``x_BTC`` is the input of ``attention``. Only the one row is computed: T, not T^2, numbers per head.
    """
    B, T, _ = x_BTC.shape
    q, k, _ = attention.qkv(x_BTC).reshape(B, T, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q_BH1D, k_BHTD = attention.q_norm(q[:, :, :1]), attention.k_norm(k)
    scores_BH1T: Tensor = (q_BH1D * attention.scale) @ k_BHTD.transpose(-2, -1)
    return scores_BH1T.softmax(dim=-1)[:, :, 0]


def pca(features: Matrix, components: int = 3) -> Matrix:
    """Scores [M, components] of ``features`` [M, C] on their first principal components, from one SVD.

    The sign of a component is arbitrary; here the side of the smaller group of rows (positive skew) is made
    positive, which on most medical images is the object and not its background.
    """
    centred = features - features.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    scores: Matrix = left[:, :components] * values[:components]
    return scores * np.where((scores**3).sum(axis=0) < 0, -1.0, 1.0)


def align(scores: Matrix, reference: Matrix) -> Matrix:
    """Order and sign the components of ``scores`` [M, K] to match those of ``reference`` [M, K].

    Two models have unrelated feature axes, but the rows are the same patches of the same images. So the
    components are correlated over the rows, and of all K! orders with their best signs the one with the largest
    sum of absolute correlations is taken. Nothing is mixed: each column stays one principal component.
    """
    correlation = _correlation(reference, scores)
    K = reference.shape[1]
    order = max(permutations(range(K)), key=lambda order: np.abs(correlation[range(K), order]).sum())
    signs = np.where(correlation[range(K), order] < 0, -1.0, 1.0)
    aligned: Matrix = scores[:, order] * signs
    return aligned


def _correlation(a: Matrix, b: Matrix) -> Matrix:
    """Pearson correlation of the columns, [Ka, Kb]; 0 where a column is constant."""
    a, b = (x - x.mean(axis=0) for x in (a, b))
    norms = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
    correlation: Matrix = np.divide(a.T @ b, norms, out=np.zeros_like(norms), where=norms > 0)
    return correlation


def colours(scores: Matrix) -> Matrix:
    """Scores [M, 3] to RGB in 0..1: each component's 2nd to 98th percentile over all images fills the range."""
    low, high = np.percentile(scores, [2, 98], axis=0)
    rgb: Matrix = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    return rgb


def joint_colours(before: Tensor, after: Tensor) -> tuple[Matrix, Matrix]:
    """Patch features [B, N, C] of two models (C may differ) to comparable colours [B, N, 3] each.

    One PCA per model over the patches of all images together, so a colour means the same thing in every image
    of a row; the second model's components are then put in the first one's order and sign (:func:`align`), so
    that a colour means about the same thing in both rows.
    """
    first = pca(_flat(before))
    second = align(pca(_flat(after)), first)
    shape = (*before.shape[:2], 3)
    return colours(first).reshape(shape), colours(second).reshape(shape)


def _flat(patches: Tensor) -> Matrix:
    rows: Matrix = patches.flatten(0, 1).double().numpy()
    return rows


def enlarge(grids: Matrix, size: int) -> Matrix:
    """Square patch grids [B, N] or [B, N, K] to pixel maps [B, size, size(, K)], bilinear."""
    flat = torch.from_numpy(grids.reshape(*grids.shape[:2], -1))
    side = round(flat.shape[1] ** 0.5)
    maps = flat.transpose(1, 2).reshape(len(flat), -1, side, side)
    big = nn.functional.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
    pixels: Matrix = big.permute(0, 2, 3, 1).numpy()
    return pixels[..., 0] if grids.ndim == 2 else pixels
