"""Nothing of the trunk is trained: only the projection heads learn. The yardstick that every adapter has to beat."""

from typing import ClassVar, Literal

from essa_dist.backbones.vit import Backbone
from essa_dist.settings import Config


class FrozenConfig(Config):
    kind: Literal["frozen"] = "frozen"
    """Train the heads only; the exported model is the base model."""


class Frozen:
    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = False
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: FrozenConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        pass

    def merge(self, backbone: Backbone) -> None:
        pass
