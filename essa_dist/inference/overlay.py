"""A mask drawn over its image: what was predicted as tinted areas, what is true as lines.

Shapes: H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import draw_segmentation_masks

from essa_dist.errors import UsageError

COLOURS = ("#00d5ff", "#f0e442", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2")
"""Of classes 1, 2, ...; then from the start again. Okabe and Ito's, told apart without full colour vision; the first
one is brighter, to be seen on black as on haematoxylin and eosin."""
TINT = 0.4
"""Share of the colour in a tinted pixel."""
LINE = 1 / 256
"""Width of a line as a share of the image's short side; a pixel at least."""
IGNORE = 255


def overlay(image: Tensor, mask: Tensor, truth: Tensor | None = None) -> Tensor:
    """``image`` (uint8 [3, H, W]) with each class of ``mask`` [H, W] tinted in its colour; uint8 [3, H, W].

    Lines of the same colours run inside the edges of ``truth``, without it inside those of ``mask``: a tint outside
    every line is too much, a line around no tint was missed. Masks of another size are resized (nearest) to the image.
    Background, 0, and pixels of IGNORE stay as they are. Raises UsageError for other shapes.
    """
    if image.ndim != 3 or len(image) != 3 or image.dtype != torch.uint8:
        raise UsageError(f"overlay of an image {tuple(image.shape)} of {image.dtype}: give uint8 [3, H, W]")
    areas = _fitted(mask, image)
    lines = areas if truth is None else _fitted(truth, image)
    tinted = _drawn(image.cpu(), areas, TINT)
    width = max(round(LINE * min(image.shape[1:])), 1)
    return _drawn(tinted, torch.where(_edges(lines, width), lines, 0), 1.0)


def _fitted(mask: Tensor, image: Tensor) -> Tensor:
    if mask.ndim != 2:
        raise UsageError(f"overlay of a mask {tuple(mask.shape)}: give class numbers [H, W]")
    classes = mask.cpu().to(torch.uint8)[None]
    size = list(image.shape[1:])
    resized: Tensor = transforms.resize(classes, size, interpolation=transforms.InterpolationMode.NEAREST)
    return resized[0].masked_fill(resized[0] == IGNORE, 0)


def _edges(mask_HW: Tensor, width: int) -> Tensor:
    """Where another value is at most ``width`` pixels away."""
    values = mask_HW.float()[None]
    highest = F.max_pool2d(values, 2 * width + 1, stride=1, padding=width)
    lowest = -F.max_pool2d(-values, 2 * width + 1, stride=1, padding=width)
    return (highest != lowest)[0]


def _drawn(image: Tensor, mask_HW: Tensor, alpha: float) -> Tensor:
    labels = [label for label in mask_HW.unique().tolist() if label]
    if not labels:
        return image
    areas = torch.stack([mask_HW == label for label in labels])
    colours = [COLOURS[(label - 1) % len(COLOURS)] for label in labels]
    drawn: Tensor = draw_segmentation_masks(image, areas, alpha=alpha, colors=colours)
    return drawn
