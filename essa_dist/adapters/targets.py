"""One way to name linear layers, over all families of ViTs: q, k, v, qkv, proj, fc1, fc2, or timm's own names.

Families differ: q, k and v are rows of one fused layer (``attn.qkv``, most ViTs) or layers of their own
(``attn.q_proj``, EVA02); the first layer of a SwiGLU is one (DINOv2 g) or two (``mlp.fc1_g`` and ``mlp.fc1_x``, EVA02).
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError

SHORT = {
    "q": (("attn.q_proj",), ("attn.qkv/0",)),
    "k": (("attn.k_proj",), ("attn.qkv/1",)),
    "v": (("attn.v_proj",), ("attn.qkv/2",)),
    "qkv": (("attn.qkv",), ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
    "proj": (("attn.proj",),),
    "fc1": (("mlp.fc1",), ("mlp.fc1_g", "mlp.fc1_x")),
    "fc2": (("mlp.fc2",),),
}
"""Short name to what it can be, the first that a block has; ``/i`` is the i-th third of a fused layer's outputs."""


class Target(NamedTuple):
    """A linear layer of a block, or some of its output features."""

    name: str
    """In the backbone: ``vit.blocks.3.attn.qkv``"""
    parent: nn.Module
    attribute: str
    linear: nn.Linear
    rows: range
    """The output features that are meant: all, or a third of a fused layer."""

    @property
    def whole(self) -> bool:
        return len(self.rows) == self.linear.out_features

    def replace(self, module: nn.Module) -> None:
        """Put ``module`` in the layer's place."""
        setattr(self.parent, self.attribute, module)


def find_targets(
    backbone: Backbone, names: Sequence[str], *, blocks: Sequence[int] | None = None
) -> list[Target]:
    """The layers that ``names`` mean in each block (or in ``blocks``), in the order of the blocks.

    Raises UsageError for a name that no block has, with the candidates, and for a layer that another adapter changed.
    """
    every = range(len(backbone.vit.blocks)) if blocks is None else blocks
    return [target for index in every for name in names for target in _in_block(backbone, index, name)]


def _in_block(backbone: Backbone, index: int, name: str) -> Iterator[Target]:
    block = backbone.vit.blocks[index]
    here = dict(block.named_modules())
    alternatives = SHORT.get(name, ((name,),))
    for paths in alternatives:
        if all(path.partition("/")[0] in here for path in paths):
            for path in paths:
                yield _target(f"vit.blocks.{index}", block, path)
            return
    linears = sorted(path for path, module in here.items() if isinstance(module, nn.Linear))
    raise UsageError(
        f"adapter.targets: {name!r} matches no linear layer of {backbone.name}; "
        f"choose from {', '.join(SHORT)} or {', '.join(linears)}"
    )


def _target(prefix: str, block: nn.Module, path: str) -> Target:
    path, _, third = path.partition("/")
    linear = block.get_submodule(path)
    # A layer has an adapter's module in its place, or inside it (SSF): timm's own has none.
    changed = next(linear.children(), None) if isinstance(linear, nn.Linear) else linear
    if not isinstance(linear, nn.Linear) or changed is not None:
        raise UsageError(
            f"adapter: two adapters change {prefix}.{path}, which is a {type(changed).__name__} already; "
            f"give them different targets"
        )
    rows = range(linear.out_features)
    if third:
        size, rest = divmod(linear.out_features, 3)
        if rest:
            raise UsageError(f"adapter.targets: {prefix}.{path} does not consist of q, k and v of one size")
        rows = range(int(third) * size, (int(third) + 1) * size)
    parent, _, attribute = path.rpartition(".")
    return Target(f"{prefix}.{path}", block.get_submodule(parent), attribute, linear, rows)


def find_norms(backbone: Backbone) -> list[tuple[str, nn.Module]]:
    """Every norm layer with weights, and its name: of blocks, attention, MLP, the embedding, and the final one.

    Known by their class's name: timm has a dozen such classes, not all of them torch's.
    """
    return [
        (name, module)
        for name, module in backbone.named_modules()
        if "norm" in type(module).__name__.lower()
        and isinstance(getattr(module, "weight", None), nn.Parameter)
    ]


def layer_seed(seed: int, name: str) -> int:
    """Each layer draws its own numbers, the same ones on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest(), "little")
