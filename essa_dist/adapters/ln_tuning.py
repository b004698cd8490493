"""LN-Tune: train weight and bias of every norm layer, the final norm and those of queries and keys included.

Source: Basu et al., "Strong Baselines for Parameter Efficient Few-Shot Fine-tuning", arXiv:2304.01917 (LN-Tune), who
tune ViTs; for attention-based language models Zhao et al., arXiv:2312.11420, found the same. An RMS norm has no bias.
"""

from typing import ClassVar, Literal

from essa_dist.adapters.targets import find_norms
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.settings import Config


class LNTuningConfig(Config):
    kind: Literal["ln_tuning"] = "ln_tuning"
    """Train the norm layers; in a combination what the others leave of them."""


class LNTuning:
    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = True
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: LNTuningConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        norms = find_norms(backbone)
        if not norms:
            raise UsageError(
                f"adapter=ln_tuning: {backbone.name} has no norm with weights; choose another adapter"
            )
        for _, norm in norms:
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(True)

    def merge(self, backbone: Backbone) -> None:
        pass
