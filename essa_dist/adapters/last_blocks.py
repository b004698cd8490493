"""Train the last blocks whole. Source: partial fine-tuning in He et al., "Masked Autoencoders", arXiv:2111.06377, 4.3."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.settings import Config


class LastBlocksConfig(Config):
    kind: Literal["last_blocks"] = "last_blocks"
    """Train every weight of the last blocks; in a combination what the others leave of them."""
    blocks: int = Field(1, ge=1)
    """How many blocks, counted from the end."""
    norm: bool = True
    """The final norm too."""


class LastBlocks:
    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = True
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: LastBlocksConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        vit, n_blocks = backbone.vit, self.config.blocks
        depth = len(vit.blocks)
        if n_blocks > depth:
            raise UsageError(
                f"adapter.blocks must be in 1..{depth} (blocks of {backbone.name}), got {n_blocks}"
            )
        for module in [*vit.blocks[depth - n_blocks :], *[vit.norm, vit.fc_norm] * self.config.norm]:
            for parameter in _own_parameters(module):
                parameter.requires_grad_(True)

    def merge(self, backbone: Backbone) -> None:
        pass


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """timm's: what an adapter put there decides itself what it trains, and may read a layer without calling it."""
    if type(module).__module__.partition(".")[0] not in ("timm", "torch"):
        return
    yield from module.parameters(recurse=False)
    for child in module.children():
        yield from _own_parameters(child)
