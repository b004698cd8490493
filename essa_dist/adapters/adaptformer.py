"""AdaptFormer: a bottleneck beside the MLP of each block, ``s * up(relu(down(norm2(x))))``, added to its output.

Source: Chen et al., "AdaptFormer", arXiv:2205.13535, as in the paper's formula; the authors' code feeds the bottleneck
the input of norm2. The sum is made behind LayerScale and before stochastic depth, which takes both or neither.
In a model that has bottlenecks of an earlier run already, those are trained on.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from essa_dist.adapters.targets import layer_seed
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.settings import Config


class AdaptFormerConfig(Config):
    kind: Literal["adaptformer"] = "adaptformer"
    """Train a bottleneck beside each MLP; exported with them, for they don't merge."""
    dim: int = Field(64, ge=1)
    """Width of the bottleneck."""
    scale: Literal["learned"] | Annotated[float, Field(gt=0)] = 0.1
    """Factor on its output; learned: one trained number per block that starts at 1."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout inside the bottleneck in training; 0.1 in the authors' code."""


class Bottleneck(nn.Module):
    """Computes its branch when the MLP is called and hands it over when the block adds the MLP's output."""

    def __init__(self, width: int, config: AdaptFormerConfig, *, seed: int, device: torch.device) -> None:
        super().__init__()
        # skip_init: the usual constructor would draw from the global RNG.
        self.down = torch.nn.utils.skip_init(nn.Linear, width, config.dim, device=device)
        self.up = torch.nn.utils.skip_init(nn.Linear, config.dim, width, device=device)
        bound = 1 / math.sqrt(width)  # Kaiming's rule with a = sqrt(5), which LoRA uses too
        weight = torch.empty(config.dim, width, device="cpu")
        weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.down.weight.copy_(weight)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()
        learned = config.scale == "learned"
        self.scale: float | Tensor = (
            nn.Parameter(torch.ones(1, device=device)) if learned else float(config.scale)
        )
        self.dropout = config.dropout
        self._branch: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.down(x)), self.dropout, self.training)
        branch: Tensor = self.up(hidden) * self.scale
        return branch

    def beside_mlp(self, mlp: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._branch = self(args[0])

    def before_drop_path(self, drop_path: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        branch, self._branch = self._branch, None  # it would hold its graph
        assert branch is not None
        return (args[0] + branch,)


class AdaptFormer:
    """Hooks around MLP and stochastic depth: the frozen tensors keep their names."""

    merges: ClassVar[bool] = False
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = False
    silent: ClassVar[tuple[str, ...]] = ("*.bottleneck.down.*", "*.bottleneck.scale")  # up is zero

    def __init__(self, config: AdaptFormerConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        for index, block in enumerate(backbone.vit.blocks):
            if not isinstance(block, Block | EvaBlock):  # others norm the MLP's output, or have several MLPs
                raise UsageError(
                    f"adapter=adaptformer needs blocks with the norm before the MLP; {backbone.name} has "
                    f"{type(block).__name__}: choose another adapter, as apla or lora"
                )
            if hasattr(block, "bottleneck"):
                self._train_on(block.bottleneck)
                continue
            bottleneck = Bottleneck(
                backbone.embed_dim,
                self.config,
                seed=layer_seed(seed, f"vit.blocks.{index}.bottleneck"),
                device=backbone.mask_token.device,
            )
            block.bottleneck = bottleneck.train(block.training)
            block.mlp.register_forward_hook(bottleneck.beside_mlp)
            block.drop_path2.register_forward_pre_hook(bottleneck.before_drop_path)

    def _train_on(self, there: Any) -> None:
        """Of a model that was trained with it before: the same one, for it can't be merged to make room."""
        dim = there.down.out_features
        scale = "learned" if isinstance(there.scale, Tensor) else there.scale
        if (dim, scale) != (self.config.dim, self.config.scale):
            raise UsageError(
                f"adapter=adaptformer trains on the bottlenecks that the model has, adapter.dim={dim} "
                f"adapter.scale={scale}; given were {self.config.dim} and {self.config.scale}: give those, or choose another "
                "adapter"
            )
        there.requires_grad_(True)
        there.dropout = self.config.dropout

    def merge(self, backbone: Backbone) -> None:
        pass
