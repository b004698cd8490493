"""Colour jitter, blur and solarisation of one crop, 2 to 4 times faster than torchvision's on one CPU thread.

The formulas are those of ``torchvision.transforms.v2.functional`` for float images (its tests here use that as the
oracle), on the scale 0..255 and in place, so that a crop is rounded to uint8 once, at its end.
Shapes: image [3, h, w] float32, contiguous.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
"""Weights of R, G, B in grey (ITU-R 601-2)."""
BLUR_RADIUS = 4
"""Pixels: a kernel of 9, DINOv2's."""
NEGLIGIBLE = 1e-4
"""Blur weights below this are dropped: together they move a pixel by less than a tenth of a grey level."""


def brightness_(image: Tensor, factor: float) -> Tensor:
    """Blend with black; factor 1 changes nothing."""
    return image.mul_(factor).clamp_(0, 255)


def contrast_(image: Tensor, factor: float) -> Tensor:
    """Blend with the mean grey of the crop."""
    means = image.mean(dim=(1, 2)).tolist()
    mean = sum(weight * channel for weight, channel in zip(LUMA, means, strict=True))
    return image.mul_(factor).add_((1 - factor) * mean).clamp_(0, 255)


def saturation_(image: Tensor, factor: float) -> Tensor:
    """Blend with the grey image."""
    grey = _luma(image).mul_(1 - factor)
    return image.mul_(factor).add_(grey).clamp_(0, 255)


def hue_(image: Tensor, shift: float) -> Tensor:
    """Turn the hue by ``shift`` of a full turn, saturation and value kept.

    Back from HSV without sextants: channel = V - C max(0, min(k, 4 - k, 1)), k = (n + 6H) mod 6, n = 5, 3, 1.
    """
    red, green, blue = image.unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    inverse = chroma.clamp_min(1e-9).reciprocal_()  # grey pixels: 0 times this
    turn = torch.where(
        value == green, (blue - red).mul_(inverse).add_(2), (red - green).mul_(inverse).add_(4)
    )
    turn = torch.where(value == red, (green - blue).mul_(inverse), turn).add_(6 * shift)
    for channel, n in zip((red, green, blue), (5, 3, 1), strict=True):
        k = turn + n
        k.sub_(torch.floor(k / 6), alpha=6)
        torch.sub(value, torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma), out=channel)
    return image


def grayscale_(image: Tensor) -> Tensor:
    """Replace every channel by the grey value."""
    return image.copy_(_luma(image).expand_as(image))


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, ``sigma`` in pixels, kernel 9, borders reflected (so h and w must exceed 4)."""
    weights = _half_kernel(sigma)
    radius = len(weights) - 1
    if radius == 0:
        return image
    height, width = image.shape[1:]
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    # Shifted sums along one axis, then the other: conv2d of one channel per group is 5 times slower here.
    rows = _shifted_sum(padded, 1, height, weights)
    return _shifted_sum(rows, 2, width, weights)


def solarise(image: Tensor, threshold: int = 128) -> Tensor:
    """Invert the values of a uint8 image that are at least ``threshold``."""
    return torch.where(image >= threshold, 255 - image, image)


def _luma(image: Tensor) -> Tensor:
    red, green, blue = LUMA
    return (image[0] * red).add_(image[1], alpha=green).add_(image[2], alpha=blue)


def _half_kernel(sigma: float) -> list[float]:
    """Weights of the centre and of distances 1, 2, ..., without the negligible tail."""
    weights = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(BLUR_RADIUS + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    return [weight / total for weight in weights if weight / total > NEGLIGIBLE]


def _shifted_sum(padded: Tensor, axis: int, size: int, weights: list[float]) -> Tensor:
    radius = len(weights) - 1
    out = padded.narrow(axis, radius, size) * weights[0]
    for distance in range(1, radius + 1):
        out.add_(padded.narrow(axis, radius - distance, size), alpha=weights[distance])
        out.add_(padded.narrow(axis, radius + distance, size), alpha=weights[distance])
    return out
