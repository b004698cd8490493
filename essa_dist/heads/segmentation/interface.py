"""What every decoder is: patch features of some blocks to logits of every pixel.

No decoder has a BatchNorm: its statistics would be those of a rank's share of the batch, and N processes would not
train what one process does (a synchronised one talks in every layer, and still differs under accumulation).
Shapes: B images, H x W pixels, N patches in a grid of h x w, C features, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import gcd
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from essa_dist.backbones.layers import Layers, layer_features
from essa_dist.backbones.vit import Backbone

GROUPS = 32
"""Groups of a GroupNorm (Wu and He, arXiv:1803.08494); fewer where they don't divide the channels."""


class Decoded(NamedTuple):
    """Logits of every pixel, fp32 whatever the decoder computes in."""

    logits: Tensor
    """[B, K, H, W]"""
    auxiliary: tuple[Tensor, ...] = ()
    """As ``logits``, of auxiliary heads; in training only."""


class Decoder(nn.Module, ABC):
    """Call it with features of :attr:`blocks`. Every trained tensor belongs to a module that is entered by a call."""

    blocks: tuple[int, ...]
    """Blocks of the trunk whose patch features it takes, the last block among them, so that all of the trunk learns."""
    auxiliary_weight: float = 0.0
    """Weight of the loss of each auxiliary head."""

    @abstractmethod
    def forward(self, layers: Layers, size: tuple[int, int]) -> Decoded:
        """``layers`` of :attr:`blocks` to logits of ``size`` = (H, W) pixels."""

    def total_loss(self, decoded: Decoded, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """``loss`` of the logits plus :attr:`auxiliary_weight` times that of each auxiliary head's."""
        total = loss(decoded.logits)
        for logits_BKHW in decoded.auxiliary:
            total = total + self.auxiliary_weight * loss(logits_BKHW)
        return total


def decode(backbone: Backbone, decoder: Decoder, images: Tensor) -> Decoded:
    """Logits of normalised ``images`` [B, 3, H, W], whose sides are multiples of the patch size."""
    height, width = images.shape[-2:]
    decoded: Decoded = decoder(layer_features(backbone, images, decoder.blocks), (height, width))
    return decoded


def upsample(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, pixels being squares (not points at the corners)."""
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)


def conv_norm_relu(n_in: int, n_out: int) -> nn.Sequential:
    """A 3x3 convolution, GroupNorm and ReLU; the grid keeps its size."""
    conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(gcd(GROUPS, n_out), n_out), nn.ReLU())


def classifier(n_in: int, n_outputs: int) -> nn.Conv2d:
    """The 1x1 convolution to logits; near zero at first, so that the loss starts at that of equal probabilities."""
    layer = nn.Conv2d(n_in, n_outputs, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
