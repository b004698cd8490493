"""SSF: a trained scale and shift per feature, behind every linear layer, norm and the patch embedding.

Source: Lian et al., "Scaling & Shifting Your Features", arXiv:2210.08823. The paper draws scales from N(1, 0.02) and
shifts from N(0, 0.02); here they start at 1 and 0, so that the model before training is the base model.
A layer without a bias of its own gets the scale only: its shift would have nowhere to go in the merged model.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from essa_dist.adapters.targets import find_norms, find_targets
from essa_dist.backbones.vit import Backbone
from essa_dist.settings import Config


class SSFConfig(Config):
    kind: Literal["ssf"] = "ssf"
    """Train a scale and a shift of every layer's output."""


class ScaleShift(nn.Module):
    """Lives in the layer whose output it changes: ``scale * layer(x) + shift``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight, bias = layer.weight, getattr(layer, "bias", None)
        assert isinstance(weight, Tensor)
        self.scale = nn.Parameter(torch.ones(len(weight), device=weight.device))
        self.shift = None if bias is None else nn.Parameter(torch.zeros_like(self.scale))
        self.behind = 2 if isinstance(layer, nn.Conv2d) else 0  # axes behind the features: [B, C, H, W]
        self.handle = layer.register_forward_hook(self.after_layer)

    def forward(self, output: Tensor) -> Tensor:
        spread = (-1, *[1] * self.behind)
        scale = self.scale.view(spread)
        if self.shift is None:
            return output * scale
        return torch.addcmul(self.shift.view(spread), output, scale)  # one pass over the outputs

    def after_layer(self, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        scaled: Tensor = self(output)
        return scaled

    @torch.no_grad()
    def fold_into(self, layer: Any) -> None:
        """Make ``layer`` alone compute what both did, with new parameters (others may share the old), and leave it."""
        weight = layer.weight * self.scale.view(-1, *[1] * (layer.weight.ndim - 1))
        if self.shift is not None:
            layer.bias = nn.Parameter(layer.bias * self.scale + self.shift, requires_grad=False)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        self.handle.remove()
        del layer.ssf


class SSF:
    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = False
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: SSFConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        vit = backbone.vit
        gated = getattr(vit.blocks[0].attn, "gate", None) is not None
        linears = find_targets(backbone, ["qkv", "proj", "fc1", "fc2", *["attn.gate"] * gated])
        for layer in [*(t.linear for t in linears), *(norm for _, norm in find_norms(backbone))]:
            layer.ssf = ScaleShift(layer)
        if isinstance(vit.patch_embed.proj, nn.Conv2d):
            vit.patch_embed.proj.ssf = ScaleShift(vit.patch_embed.proj)

    def merge(self, backbone: Backbone) -> None:
        for layer in list(backbone.modules()):
            if isinstance(ssf := getattr(layer, "ssf", None), ScaleShift):
                ssf.fold_into(layer)
