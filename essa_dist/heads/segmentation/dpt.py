"""DPT: features of four blocks reassembled at four scales and fused from coarse to fine.

Source: Ranftl et al., arXiv:2103.13413, section 3; widths of its base model as shares of the trunk's. Patch tokens
alone are read (its "ignore" readout). Chosen over UPerNet (arXiv:1807.10221), which wants a pyramid that a plain ViT
hasn't, and whose pooled 1x1 grids need a BatchNorm: over one pixel there is nothing else to take statistics of.
Fusion has no norm at all, the output layers have a GroupNorm for the paper's BatchNorm.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from essa_dist.backbones.layers import Layers, at_depths
from essa_dist.backbones.vit import Backbone
from essa_dist.heads.segmentation.interface import Decoded, Decoder, classifier, conv_norm_relu, upsample
from essa_dist.settings import Config

SHARES = (1 / 4, 2 / 4, 3 / 4, 1.0)
"""Of the blocks: those whose features are taken, the finest scale first."""
WIDTHS = (8, 4, 2, 1)
"""The trunk's width over that of each scale: 96, 192, 384 and 768 for ViT-B, as in the paper."""


class DPTConfig(Config):
    kind: Literal["dpt"] = "dpt"
    """Four scales, fused from coarse to fine (DPT)."""
    channels: int = Field(256, ge=1)
    """Channels of the fusion blocks."""


class Residual(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convs = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(*(part for conv in convs for part in (nn.ReLU(), conv)))

    def forward(self, x_BChw: Tensor) -> Tensor:
        out: Tensor = x_BChw + self.layers(x_BChw)
        return out


class Fusion(nn.Module):
    """Adds a scale to what comes from the coarser ones, and brings the sum to the next finer grid."""

    def __init__(self, channels: int, *, coarsest: bool) -> None:
        super().__init__()
        self.of_scale = None if coarsest else Residual(channels)
        self.of_sum = Residual(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, scale_BChw: Tensor, coarser_BChw: Tensor | None, size: tuple[int, int]) -> Tensor:
        x = scale_BChw
        if self.of_scale is not None and coarser_BChw is not None:
            x = coarser_BChw + self.of_scale(scale_BChw)
        out: Tensor = self.project(upsample(self.of_sum(x), size))
        return out


class DPT(Decoder):
    def __init__(self, config: DPTConfig, backbone: Backbone, n_outputs: int) -> None:
        super().__init__()
        self.blocks = at_depths(len(backbone.vit.blocks), SHARES)
        width, channels = backbone.embed_dim, config.channels
        widths = [max(width // share, 1) for share in WIDTHS]
        self.project = nn.ModuleList(nn.Conv2d(width, n, 1) for n in widths)
        fourfold, twofold, _, coarsest = widths
        self.resample = nn.ModuleList(
            (
                nn.ConvTranspose2d(fourfold, fourfold, 4, stride=4),
                nn.ConvTranspose2d(twofold, twofold, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(coarsest, coarsest, 3, stride=2, padding=1),
            )
        )
        self.narrow = nn.ModuleList(nn.Conv2d(n, channels, 3, padding=1, bias=False) for n in widths)
        self.fuse = nn.ModuleList(Fusion(channels, coarsest=i == 3) for i in range(4))
        self.out = nn.Sequential(conv_norm_relu(channels, channels), classifier(channels, n_outputs))

    def forward(self, layers: Layers, size: tuple[int, int]) -> Decoded:
        parts = zip(layers.maps(), self.project, self.resample, self.narrow, strict=True)
        scales = [narrow(resample(project(x))) for x, project, resample, narrow in parts]
        # The grid behind each fusion is that of the next finer scale, and twice the finest in the end.
        finest = scales[0].shape[-2:]
        grids = [(2 * finest[0], 2 * finest[1]), *(tuple(x.shape[-2:]) for x in scales[:-1])]
        x = None
        for scale, fuse, grid in reversed(list(zip(scales, self.fuse, grids, strict=True))):
            x = fuse(scale, x, grid)
        return Decoded(upsample(self.out(x).float(), size))
