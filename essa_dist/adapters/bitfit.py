"""BitFit: train every bias of the trunk, of norms too. Source: Ben Zaken et al., arXiv:2106.10199."""

from typing import ClassVar, Literal

from torch import nn

from essa_dist.adapters.apla import APLALinear
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.settings import Config


class BitFitConfig(Config):
    kind: Literal["bitfit"] = "bitfit"
    """Train the biases; in a combination those that the others leave."""


class BitFit:
    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = True
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: BitFitConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        biases = [
            parameter
            for name, module in backbone.named_modules()
            if not _composed(backbone.get_submodule(name.rpartition(".")[0]))
            for attribute, parameter in module.named_parameters(recurse=False)
            if attribute == "bias" or attribute in ("q_bias", "v_bias")  # the two of EVA's fused attention
        ]
        if not biases:
            raise UsageError(f"adapter=bitfit: {backbone.name} has no bias to train")
        for parameter in biases:
            parameter.requires_grad_(True)

    def merge(self, backbone: Backbone) -> None:
        pass


def _composed(parent: nn.Module) -> bool:
    """APLA's and DoRA's layers read their base layer's tensors without calling it: its bias stays as it is.

    APLA trains the entries of its own rows itself.
    """
    return isinstance(parent, APLALinear) or bool(getattr(parent, "lora_magnitude_vector", None))
