"""Patch embeddings for another number of image channels than the weights have.

Shapes: D features, C channels of the weights, H x W pixels of a patch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from essa_dist.errors import WeightsError

Statistics = tuple[float, ...]


def adapt_statistics(
    mean: Sequence[float], std: Sequence[float], in_chans: int
) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation of pixels for ``in_chans`` channels: averaged for one, else repeated in turn."""
    if len(mean) == in_chans:
        return tuple(mean), tuple(std)
    if in_chans == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    turn = [i % len(mean) for i in range(in_chans)]
    return tuple(mean[i] for i in turn), tuple(std[i] for i in turn)


def adapt_patch_embed(
    weight_DCHW: Tensor, bias_D: Tensor | None, mean: Sequence[float], std: Sequence[float], in_chans: int
) -> tuple[Tensor, Tensor | None, Statistics, Statistics, str | None]:
    """Weight and bias for ``in_chans`` channels, with the pixel statistics to be used and the rule in words.

    ``mean`` and ``std`` belong to the C channels of the weights. The rule is None where C is ``in_chans`` already.

    To one channel, a grey image g gives what it gave repeated over all C. A feature there is, over the pixels p of a
    patch, b + Σ_c Σ_p w_cp (g_p - m_c) / s_c. With the averages m and s for the one channel and
    w'_p = s Σ_c w_cp / s_c, the weighted sum w'_p (g_p - m) / s has the same part in g; what remains is constant,
    and patches are not padded, so it goes into the bias: b' = b + Σ_c Σ_p w_cp (m - m_c) / s_c.
    From one channel, weights are divided by ``in_chans``, so that again a repeated grey image gives the same.
    Otherwise channels are repeated in turn and scaled by C / ``in_chans``, as timm does.

    Raises WeightsError if a constant remains and there is no bias to hold it.
    """
    channels = weight_DCHW.shape[1]
    if channels == in_chans:
        return weight_DCHW, bias_D, tuple(mean), tuple(std), None
    mean, std = adapt_statistics(mean, std, channels)
    new_mean, new_std = adapt_statistics(mean, std, in_chans)
    if in_chans != 1:
        turn = torch.arange(in_chans) % channels
        weight = weight_DCHW[:, turn] * (channels / in_chans)
        rule = f"{channels} -> {in_chans} channels: repeated in turn, scaled by {channels}/{in_chans}"
        return weight, bias_D, new_mean, new_std, rule
    scale = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    apart = new_mean[0] - torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
    per_pixel = weight_DCHW.double() / scale
    weight = (new_std[0] * per_pixel.sum(dim=1, keepdim=True)).to(weight_DCHW.dtype)
    rule = f"{channels} -> 1 channels: summed, with their means and deviations folded into weight and bias"
    if bias_D is not None:
        bias_D = (bias_D.double() + (per_pixel * apart).sum(dim=(1, 2, 3))).to(bias_D.dtype)
    elif bool(apart.abs().max() > 1e-6):
        raise WeightsError(
            "the patch embedding has no bias to take up that its channels have different means: keep backbone.in_chans=3"
        )
    return weight, bias_D, new_mean, new_std, rule
