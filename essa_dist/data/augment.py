"""Multi-crop augmentation on the CPU: a pure function of (image, config, seed). What is done is drawn in ``views.py``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.data import colour
from essa_dist.data.views import N_GLOBAL, CropConfig, View, draw_views

CHANGES = {
    "brightness": colour.brightness_,
    "contrast": colour.contrast_,
    "saturation": colour.saturation_,
    "hue": colour.hue_,
}


def make_crops(image: Tensor, config: CropConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Cut the crops of ``image`` (uint8 [3, H, W], any size).

    Returns uint8 global [2, 3, g, g] and local [L, 3, l, l] crops, the same for the same arguments.
    """
    views = draw_views(config, image.shape[1], image.shape[2], seed)
    if config.resize is not None:
        image = _resize(image, config.resize)
    globals_ = torch.empty(N_GLOBAL, 3, config.global_size, config.global_size, dtype=torch.uint8)
    locals_ = torch.empty(config.n_local, 3, config.local_size, config.local_size, dtype=torch.uint8)
    for out, view in zip((*globals_, *locals_), views, strict=True):
        apply_view(out, image, view)
    return globals_, locals_


def apply_view(out: Tensor, image: Tensor, view: View) -> None:
    """Write one view of ``image`` (uint8 [3, H, W]) into ``out`` (uint8 [3, s, s])."""
    top, left, height, width = view.box
    crop = turn(_resize(image[:, top : top + height, left : left + width], out.shape[-1]), view)
    pixels = crop.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    for name, amount in view.jitter:
        CHANGES[name](pixels, amount)
    if view.grey:
        colour.grayscale_(pixels)
    if view.sigma is not None:
        pixels = colour.blur(pixels, view.sigma)
    out.copy_(pixels.round_())
    if view.solarise:
        out.copy_(colour.solarise(out))


def _resize(image: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing, on uint8 (torch has a vectorised kernel for exactly this)."""
    if image.shape[1:] == (size, size):
        return image
    if image.shape[1:] == (1, 1):  # torch's kernel can't tell the memory layout of one pixel, and fails
        return image.expand(3, size, size)
    return F.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0]


def turn(crop: Tensor, view: View) -> Tensor:
    """[C, h, w] flipped and turned by quarters."""
    flipped = [axis for axis, flip in ((2, view.hflip), (1, view.vflip)) if flip]
    crop = crop.flip(flipped) if flipped else crop
    return crop.rot90(view.quarter_turns, (1, 2)) if view.quarter_turns else crop
