"""The linear decoder: LayerNorm and a 1x1 convolution on patch tokens, then bilinear upsampling.

What it reaches is what the features themselves know of every patch. Source: DINOv2, arXiv:2304.07193, section 7.4,
whose code has a BatchNorm for the LayerNorm, and whose stronger variant reads the last four blocks side by side.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from essa_dist.backbones.layers import Layers
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.heads.segmentation.interface import Decoded, Decoder, classifier, upsample
from essa_dist.settings import Config


class LinearDecoderConfig(Config):
    kind: Literal["linear"] = "linear"
    """One linear layer on each patch's features."""
    last: int = Field(1, ge=1)
    """How many of the last blocks give their features, side by side: DINOv2 has 1, and 4 in its stronger variant."""


class LinearDecoder(Decoder):
    def __init__(self, config: LinearDecoderConfig, backbone: Backbone, n_outputs: int) -> None:
        super().__init__()
        depth = len(backbone.vit.blocks)
        if config.last > depth:
            raise UsageError(
                f"decoder.last={config.last} is more than the {depth} blocks of {backbone.name}: use at most {depth}"
            )
        self.blocks = tuple(range(depth - config.last, depth))
        width = backbone.embed_dim * config.last
        self.norm = nn.LayerNorm(width)
        self.classify = classifier(width, n_outputs)

    def forward(self, layers: Layers, size: tuple[int, int]) -> Decoded:
        x_BNC = self.norm(torch.cat(layers.patches, dim=-1))
        x_BChw = x_BNC.transpose(1, 2).unflatten(2, layers.grid)
        return Decoded(upsample(self.classify(x_BChw).float(), size))
