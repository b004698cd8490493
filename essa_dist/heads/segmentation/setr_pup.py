"""SETR-PUP: progressive upsampling of the last block's features, with auxiliary heads on three earlier blocks.

Source: Zheng et al., arXiv:2012.15840: convolutions, each followed by a doubling of the grid, auxiliary losses on the
features of blocks 10, 15 and 20 of 24; 3x3 and 256 channels as in its code. APLA's ADE20K recipe has three auxiliary
heads of weight 0.4. Here GroupNorm stands for the (synchronised) BatchNorm.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from essa_dist.backbones.layers import Layers, at_depths
from essa_dist.backbones.vit import Backbone
from essa_dist.heads.segmentation.interface import Decoded, Decoder, classifier, conv_norm_relu, upsample
from essa_dist.settings import Config

SHARES = (10 / 24, 15 / 24, 20 / 24, 1.0)
"""Of the blocks: where the auxiliary heads and the decoder look."""


class SETRPUPConfig(Config):
    kind: Literal["setr_pup"] = "setr_pup"
    """Progressive upsampling by convolutions (SETR-PUP)."""
    channels: int = Field(256, ge=1)
    """Channels of the convolutions."""
    stages: int = Field(4, ge=1)
    """Convolutions, each followed by a doubling of the grid: 4 take patches of 16 to pixels."""
    auxiliary_weight: float = Field(0.4, ge=0)
    """Weight of the loss of each of three auxiliary heads on earlier blocks, in training; 0: no such heads."""


class Progressive(nn.Module):
    """Norm of patch tokens, ``stages`` of convolution and upsampling, logits."""

    def __init__(self, width: int, n_outputs: int, *, channels: int, stages: int, factor: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.stages = nn.ModuleList(conv_norm_relu(channels if i else width, channels) for i in range(stages))
        self.classify = classifier(channels, n_outputs)
        self.factor = factor

    def forward(self, x_BNC: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """[B, N, C] to fp32 logits [B, K, H, W] of ``size``."""
        x = self.norm(x_BNC).transpose(1, 2).unflatten(2, grid)
        for stage in self.stages:
            x = stage(x)
            x = upsample(x, (x.shape[-2] * self.factor, x.shape[-1] * self.factor))
        return upsample(self.classify(x).float(), size)


class SETRPUP(Decoder):
    def __init__(self, config: SETRPUPConfig, backbone: Backbone, n_outputs: int) -> None:
        super().__init__()
        width, channels = backbone.embed_dim, config.channels
        *earlier, last = at_depths(len(backbone.vit.blocks), SHARES)
        self.auxiliary_weight = config.auxiliary_weight
        earlier = earlier if config.auxiliary_weight else []
        self.blocks = (*earlier, last)
        self.main = Progressive(width, n_outputs, channels=channels, stages=config.stages, factor=2)
        # One convolution and one fourfold upsampling, as in the configs of mmsegmentation that APLA uses.
        self.auxiliary = nn.ModuleList(
            Progressive(width, n_outputs, channels=channels, stages=1, factor=4) for _ in earlier
        )

    def forward(self, layers: Layers, size: tuple[int, int]) -> Decoded:
        *earlier, last = layers.patches
        logits = self.main(last, layers.grid, size)
        if not self.training:
            return Decoded(logits)
        auxiliary = [head(x, layers.grid, size) for head, x in zip(self.auxiliary, earlier, strict=True)]
        return Decoded(logits, tuple(auxiliary))
