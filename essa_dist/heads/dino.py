"""The DINO projection head: MLP, L2 normalisation, weight-normalised prototypes.

Source: DINO, arXiv:2104.14294, appendix C; names and initialisation as in DINOv2. Meta released no head,
so it is always trained from scratch. Shapes: N rows, C trunk width, D bottleneck, K prototypes.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from essa_dist.settings import Config


class HeadConfig(Config):
    prototypes: int = Field(65536, ge=2)
    """Number of prototypes K, the width of the output."""
    hidden: int = Field(2048, ge=1)
    """Width of the hidden layers."""
    bottleneck: int = Field(256, ge=1)
    """Width of the normalised layer before the prototypes."""
    layers: int = Field(3, ge=1)
    """Linear layers before the prototypes."""
    init: Literal["trunc_normal", "kaiming"] = "trunc_normal"
    """trunc_normal (std 0.02) is DINOv2's; kaiming starts with outputs of unit scale, which short runs need."""
    norm_prototypes: bool = False
    """Keep every prototype at unit length, as DINO's norm_last_layer does; DINOv2 trains the lengths."""
    standardize_on: int = Field(0, ge=0)
    """Standardise the head's input with the mean and deviation of the frozen features of this many images; 0: off."""


class Apart(NamedTuple):
    """Logits ``rows @ weight.T`` that nobody has computed yet."""

    rows: Tensor  # [N, D]
    weight: Tensor  # [K, D]


class WeightNormLinear(nn.Module):
    """``x @ (g v / ||v||).T`` without bias; ``weight_g`` [K, 1] starts at 1, names as in torch's weight_norm."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_g = nn.Parameter(torch.ones(out_features, 1))

    def forward(self, x_ND: Tensor, *, apart: bool = False) -> Tensor | Apart:
        weight_KD = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return Apart(x_ND, weight_KD) if apart else F.linear(x_ND, weight_KD)


class DINOHead(nn.Module):
    """[N, C] trunk features to [N, K] logits, or to what they are the product of."""

    input_mean: Tensor  # [C], 0 unless standardised
    input_std: Tensor  # [C], 1 unless standardised

    def __init__(self, in_features: int, config: HeadConfig) -> None:
        super().__init__()
        self.standardize_on = config.standardize_on
        self.register_buffer("input_mean", torch.zeros(in_features))
        self.register_buffer("input_std", torch.ones(in_features))
        widths = [in_features] + [config.hidden] * (config.layers - 1) + [config.bottleneck]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = WeightNormLinear(config.bottleneck, config.prototypes)
        self.last_layer.weight_g.requires_grad_(not config.norm_prototypes)
        self._initialise(config.init)

    def _initialise(self, kind: str) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                if kind == "kaiming":
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                else:
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # torch's weight_norm takes v from a Linear, whose default is this one; DINOv2 leaves it so.
        nn.init.kaiming_uniform_(self.last_layer.weight_v, a=5**0.5)

    @torch.no_grad()
    def standardize(self, features_NC: Tensor) -> None:
        """Fix the input standardisation from ``features_NC``; near-constant features are not blown up."""
        std_C, mean_C = torch.std_mean(features_NC.float(), dim=0)
        self.input_mean.copy_(mean_C)
        self.input_std.copy_(std_C.clamp_min(1e-3 * std_C.mean()))

    def forward(self, x_NC: Tensor, *, apart: bool = False) -> Tensor | Apart:
        x_NC = (x_NC - self.input_mean.to(x_NC.dtype)) / self.input_std.to(x_NC.dtype)
        z_ND = self.mlp(x_NC)
        eps = 1e-6 if z_ND.dtype == torch.float16 else 1e-12
        logits: Tensor | Apart = self.last_layer(F.normalize(z_ND, dim=-1, eps=eps), apart=apart)
        return logits
