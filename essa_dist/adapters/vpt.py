"""VPT: learned prompt tokens, seen by the others in attention, at every block (deep) or from the first one on.

Source: Jia et al., "Visual Prompt Tuning", arXiv:2203.12119. Prompts have a share in every softmax from the start,
so this is the one adapter whose model before training is not the base model. In a model that has prompts of an earlier
run already, those are trained on, and the model before training is that one.
Shapes: B images, T class and register tokens, P prompts, N patches, C features.
"""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from essa_dist.adapters.targets import layer_seed
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.settings import Config


class VPTConfig(Config):
    kind: Literal["vpt"] = "vpt"
    """Train prompt tokens; exported with them, for they don't merge."""
    tokens: int = Field(10, ge=1)
    """Prompts at each block that gets its own."""
    deep: bool = True
    """Every block has its own prompts; else one set enters the first block and passes through them all."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the prompts in training; the default is that of the authors' code."""


class Prompts(nn.Module):
    """P tokens that stand behind the first T of a sequence while it passes through one block or several."""

    sequence_wise: ClassVar[bool] = True  # not for sequences that hold several images

    def __init__(self, tokens_1PC: Tensor, *, behind: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens_1PC)
        self.behind, self.n_tokens, self.dropout = behind, tokens_1PC.shape[1], dropout

    def forward(self, x_BNC: Tensor) -> Tensor:
        """[B, T + N, C] to [B, T + P + N, C]."""
        prompts_BPC = self.tokens.to(x_BNC.dtype).expand(x_BNC.shape[0], -1, -1)
        prompts_BPC = F.dropout(prompts_BPC, self.dropout, self.training)
        return torch.cat([x_BNC[:, : self.behind], prompts_BPC, x_BNC[:, self.behind :]], dim=1)

    def enter(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self(args[0]), *args[1:]

    def leave(self, block: nn.Module, args: Any, x_BNC: Tensor) -> Tensor:
        return torch.cat([x_BNC[:, : self.behind], x_BNC[:, self.behind + self.n_tokens :]], dim=1)


class VPT:
    """Hooks around blocks: a block's name and timm's forward stay, whatever the family and the image size."""

    merges: ClassVar[bool] = False
    starts_exact: ClassVar[bool] = False
    yields: ClassVar[bool] = False
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: VPTConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        blocks = list(backbone.vit.blocks)
        if there := [block.prompts for block in blocks if hasattr(block, "prompts")]:
            self._train_on(there, len(blocks))
            return
        for index, block in enumerate(blocks if self.config.deep else blocks[:1]):
            tokens = self._draw(backbone, layer_seed(seed, f"vit.blocks.{index}.prompts"))
            prompts = Prompts(
                tokens.to(backbone.mask_token.device),
                behind=backbone.num_prefix_tokens,
                dropout=self.config.dropout,
            )
            block.prompts = prompts.train(block.training)
            block.register_forward_pre_hook(prompts.enter)
            last = block if self.config.deep else blocks[-1]
            last.register_forward_hook(prompts.leave)
        # Rotary attention: only what stands behind these tokens has a place in the image.
        for block in blocks:
            if hasattr(block.attn, "num_prefix_tokens"):
                block.attn.num_prefix_tokens += self.config.tokens

    def _train_on(self, there: list[Prompts], depth: int) -> None:
        """Of a model that was trained with prompts before: the same ones, for they can't be merged to make room."""
        tokens, deep = there[0].n_tokens, len(there) == depth
        if (tokens, deep) != (self.config.tokens, self.config.deep):
            raise UsageError(
                f"adapter=vpt trains on the prompts that the model has, adapter.tokens={tokens} "
                f"adapter.deep={str(deep).lower()}; given were {self.config.tokens} and {str(self.config.deep).lower()}: "
                "give those, or choose another adapter"
            )
        for prompts in there:
            prompts.tokens.requires_grad_(True)
            prompts.dropout = self.config.dropout

    def _draw(self, backbone: Backbone, seed: int) -> Tensor:
        """[1, P, C], uniform in the bounds of Xavier's rule for a layer from a patch's pixels to a token."""
        bound = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.embed_dim))
        tokens = torch.empty(1, self.config.tokens, backbone.embed_dim, device="cpu")
        return tokens.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))

    def merge(self, backbone: Backbone) -> None:
        pass
