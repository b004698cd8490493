"""Finding one trunk among the tensors of a file, by the name of its patch embedding."""

from torch import Tensor

from essa_dist.backbones.formats.names import Notes
from essa_dist.errors import WeightsError

ANCHORS = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
)
"""The weight of the patch embedding, as the formats name it."""

PREFERRED = ("teacher", "ema")
"""Of several copies of a trunk that one is taken whose prefix has the first of these words."""


def trunk_prefix(state: dict[str, Tensor]) -> str:
    """What stands before the trunk's names: ``teacher.backbone.``, ``module.``, ``vit.`` or nothing.

    Raises WeightsError for no trunk, and for several of which none is a teacher or a moving average.
    """
    found = sorted(
        name[: -len(anchor)] for name in state for anchor in ANCHORS if f".{name}".endswith(f".{anchor}")
    )
    if not found:
        raise WeightsError("it is not a vision transformer: no patch_embed.proj.weight, under any prefix")
    for word in PREFERRED:
        if len(matching := [prefix for prefix in found if word in prefix]) == 1:
            return matching[0]
    if len(found) > 1:
        raise WeightsError(
            f"it holds {len(found)} vision transformers ({', '.join(found)}): save the one you mean alone"
        )
    return found[0]


def take_trunk(state: dict[str, Tensor], notes: Notes) -> dict[str, Tensor]:
    """The trunk's tensors without their prefix; all others are dropped. Raises as ``trunk_prefix``."""
    prefix = trunk_prefix(state)
    if not prefix:
        return dict(state)
    notes.dropped += [(name, f"not in {prefix}*") for name in state if not name.startswith(prefix)]
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
