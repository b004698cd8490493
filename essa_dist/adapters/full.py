"""Every weight is trained: plain SSA, the method that ESSA is compared with."""

from typing import ClassVar, Literal

from essa_dist.backbones.vit import Backbone
from essa_dist.settings import Config


class FullConfig(Config):
    kind: Literal["full"] = "full"
    """Train every weight of the trunk."""


class Full:
    """The one adapter whose branches can't share the trunk: its teacher is a second trunk."""

    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = False
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: FullConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        backbone.requires_grad_(True)

    def merge(self, backbone: Backbone) -> None:
        pass  # nothing was added
