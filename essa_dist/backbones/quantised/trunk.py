"""Which layers of a trunk are packed."""

import logging
from collections.abc import Iterator

import torch
from torch import nn

from essa_dist.backbones.quantised.linear import Kind, QuantisedLinear, fits, quantise_
from essa_dist.backbones.vit import Backbone
from essa_dist.distributed.collectives import rank

log = logging.getLogger(__name__)


def quantise_trunk(
    backbone: Backbone, kind: Kind, *, dtype: torch.dtype, device: torch.device | None = None
) -> int:
    """Pack the frozen linear layers of the blocks, in place, one by one; returns how many bytes they take then.

    To be called when adapters are in place. A layer whose weight is trained, and one of sizes that ``kind`` doesn't take,
    stays as it is, and so do patch embedding and norms. With ``device`` each goes there to be packed, and stays, so that of a
    trunk in the host's memory never more than one whole layer is on the device. The packed layers compute in ``dtype``.
    """
    found = [
        (f"vit.blocks.{name}", layer)
        for name, layer in trunk_layers(backbone.vit.blocks)
        if not _is_trained(layer)
    ]
    chosen = [layer for _, layer in found if fits(layer, kind)]
    numbers = sum(layer.in_features * layer.out_features for layer in chosen)
    for layer in chosen:
        quantise_(layer, kind, dtype=dtype, device=device)
    taken = sum(p.nbytes for layer in chosen if isinstance(layer, QuantisedLinear) for p in layer.packed)
    _say(kind, found, len(chosen), numbers * dtype.itemsize, taken)
    return taken


def trunk_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers that the trunk itself has, with their names. What adapters brought along, trained or kept from a run
    before, is not among them, but the layers inside of it are that it took the place of."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            yield f"{prefix}{name}", child
        elif type(child).__module__.partition(".")[0] in ("timm", "torch") or _is_ours(child):
            yield from trunk_layers(child, f"{prefix}{name}.")
        else:
            for inside in ("base", "base_layer"):
                if type(base := getattr(child, inside, None)) is nn.Linear:
                    yield f"{prefix}{name}.{inside}", base


def _is_ours(module: nn.Module) -> bool:
    """Whether it is a layer of the trunk under another class, as those of ``backbones.lean``."""
    return type(module).__module__.startswith(__name__.partition(".quantised")[0] + ".")


def _is_trained(layer: nn.Linear) -> bool:
    return layer.weight.requires_grad


def _say(kind: Kind, found: list[tuple[str, nn.Linear]], n: int, before: int, after: int) -> None:
    if rank() != 0:
        return
    if not found:
        log.warning(
            "engine.trunk=%s: no linear layer of the blocks is frozen, so nothing is packed; choose an adapter",
            kind,
        )
        return
    left = [name for name, layer in found if not isinstance(layer, QuantisedLinear)]
    log.info(
        "frozen trunk in %s: %d of %d frozen linear layers, %.1f MB in place of %.1f",
        kind,
        n,
        len(found),
        after / 1e6,
        before / 1e6,
    )
    if left:
        log.warning(
            "engine.trunk=%s: sizes of %s%s don't fit, so %d layers stay as they were",
            kind,
            ", ".join(left[:3]),
            ", ..." if len(left) > 3 else "",
            len(left),
        )
