"""What every adapter offers, and the one rule for choosing layers by name."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import nn

from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError


class Adapter(Protocol):
    """Contract: a no-op before training; only trained tensors move; ``merge`` keeps the features.

    Teachers are not an adapter's business: ``Branches`` gives every trained tensor a second setting.
    """

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Change ``backbone`` in place so that exactly the trained tensors require gradients."""
        ...

    def merge(self, backbone: Backbone) -> None:
        """Fold the trained tensors back, in place: afterwards ``backbone.vit`` is a plain timm module tree."""
        ...


def matching_linears(
    backbone: Backbone, targets: Sequence[str]
) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """``(full name, parent, attribute, layer)`` of the blocks' linear layers whose name ends in one of ``targets``.

    A target that matches nothing is a UsageError that lists the candidates.
    """
    linears = {name: m for name, m in backbone.vit.blocks.named_modules() if isinstance(m, nn.Linear)}
    for target in targets:
        matches = [name for name in linears if name.split(".", 1)[1] == target]
        if not matches:
            candidates = sorted({name.split(".", 1)[1] for name in linears})
            raise UsageError(
                f"adapter.targets: {target!r} matches no linear layer of {backbone.name}; choose from {candidates}"
            )
        for name in matches:
            parent, _, attribute = name.rpartition(".")
            yield f"vit.blocks.{name}", backbone.vit.blocks.get_submodule(parent), attribute, linears[name]
