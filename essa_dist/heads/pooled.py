"""A linear head on pooled tokens, for tasks that judge whole images.

Shapes: B images, N patches, C trunk width, L outputs.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from essa_dist.backbones.vit import Features
from essa_dist.settings import Config

Pooling = Literal["cls", "mean", "cls+mean"]


class PooledHeadConfig(Config):
    pooling: Pooling = "cls"
    """What the head sees: the class token, the mean of the patch tokens, or both side by side."""
    fc_norm: bool = False
    """LayerNorm between pooling and the linear layer."""
    trunk_norm: bool = True
    """The trunk's final norm before pooling (false: left out, and not trained; with pooling=mean and fc_norm=true MAE's and
    MED-PEFT's head, and timm's global_pool=avg)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the pooled features that is set to 0 in training."""
    init_std: float = Field(0.01, gt=0)
    """Deviation of the linear layer's first weights; 2e-5 is MAE's and MED-PEFT's. Its biases start at 0."""


class PooledHead(nn.Module):
    """Tokens after the trunk's final norm, or before it where not ``trunk_norm``, to logits [B, L]."""

    def __init__(self, embed_dim: int, n_outputs: int, config: PooledHeadConfig) -> None:
        super().__init__()
        self.pooling, self.trunk_norm = config.pooling, config.trunk_norm
        width = 2 * embed_dim if config.pooling == "cls+mean" else embed_dim
        self.fc_norm = (
            nn.LayerNorm(width, eps=1e-6) if config.fc_norm else nn.Identity()
        )  # timm's eps of ViTs
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width, n_outputs)
        nn.init.trunc_normal_(self.linear.weight, std=config.init_std)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Features) -> Tensor:
        logits_BL: Tensor = self.linear(self.dropout(self.fc_norm(pool(tokens, self.pooling))))
        return logits_BL


def pool(tokens: Features, pooling: Pooling) -> Tensor:
    """[B, C]; [B, 2C] of both."""
    if pooling == "cls":
        return tokens.cls
    mean_BC = tokens.patches.mean(dim=1)
    return mean_BC if pooling == "mean" else torch.cat([tokens.cls, mean_BC], dim=1)
