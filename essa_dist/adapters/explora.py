"""ExPLoRA: train a block or two whole, the norms, and low-rank changes of every other block.

Source: Khanna et al., arXiv:2406.10973: the last block, LoRA of rank 64 on q and v, norms trained. Its code can train the
class token too, which is left out here. Its alpha was not to be found: 64, so that the change is not scaled.
"""

from typing import ClassVar, Literal

from pydantic import Field

from essa_dist.adapters.lora import LoRA, LoRAConfig, merge_lora
from essa_dist.adapters.targets import find_norms, find_targets
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.settings import Config


class ExPLoRAConfig(Config):
    kind: Literal["explora"] = "explora"
    """Train a few blocks whole and low-rank changes of the others."""
    blocks: tuple[int, ...] = Field((-1,), min_length=1)
    """Blocks that are trained whole; -1 is the last one."""
    norms: bool = True
    """Train the norms of all blocks and the final one."""
    rank: int = Field(64, ge=1)
    """Rank of the change of each target in the other blocks."""
    alpha: float = Field(64, gt=0)
    """The change is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the student on the way into the change."""
    targets: tuple[str, ...] = ("q", "v")
    """Layers of the other blocks that are changed: q, k, v, qkv, proj, fc1, fc2, or timm's own names."""


class ExPLoRA:
    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = False
    silent: ClassVar[tuple[str, ...]] = ("*.lora_A.*",)  # B is zero

    def __init__(self, config: ExPLoRAConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        depth = len(backbone.vit.blocks)
        if wrong := [i for i in self.config.blocks if not -depth <= i < depth]:
            raise UsageError(f"adapter.blocks={wrong[0]}: {backbone.name} has blocks {-depth}..{depth - 1}")
        whole = {i % depth for i in self.config.blocks}
        others = [i for i in range(depth) if i not in whole]
        shared = self.config.model_dump(include={"rank", "alpha", "dropout", "targets"})
        LoRA(LoRAConfig(**shared)).inject_into(
            find_targets(backbone, self.config.targets, blocks=others), seed=seed
        )
        for i in whole:
            backbone.vit.blocks[i].requires_grad_(True)
        if self.config.norms:
            for _, norm in find_norms(backbone):
                norm.requires_grad_(True)

    def merge(self, backbone: Backbone) -> None:
        merge_lora(backbone)
