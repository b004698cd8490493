"""Names of one format against timm's, in both directions, and notes of what became of a file's tensors.

Shapes: C features, N patches.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers.mlp import GluMlp
from torch import Tensor

from essa_dist.errors import WeightsError

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass
class Notes:
    """What became of tensors between a file and the trunk; filled by the formats, read by ``LoadReport``."""

    renamed: list[tuple[str, str]] = field(default_factory=list)
    """(name in the file, timm's name)"""
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...], str]] = field(default_factory=list)
    """(timm's name, shape in the file, shape in the trunk, by which rule)"""
    dropped: list[tuple[str, str]] = field(default_factory=list)
    """(name in the file, why it isn't the trunk's)"""


class Names:
    """A two-way table: ``*`` stands for a block's number, a final dot for both ``weight`` and ``bias``."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        whole = [
            (theirs + part, ours + part)
            for theirs, ours in pairs
            for part in (("weight", "bias") if ours.endswith(".") else ("",))
        ]
        self._to_timm = dict(whole)
        self._from_timm = {ours: theirs for theirs, ours in whole}

    def to_timm(self, name: str) -> str | None:
        """timm's name; None where the table has none."""
        return _look_up(self._to_timm, name)

    def from_timm(self, name: str) -> str | None:
        """The format's name of timm's; None where the table has none."""
        return _look_up(self._from_timm, name)


def _look_up(table: dict[str, str], name: str) -> str | None:
    number = NUMBER.search(name)
    if number is None:
        return table.get(name)
    found = table.get(f"{name[: number.start()]}*{name[number.end() :]}")
    return found and found.replace("*", number.group())


def rename_back(state: dict[str, Tensor], names: Names, *, layout: str) -> dict[str, Tensor]:
    """timm's ``state`` with the format's names. Raises WeightsError for a tensor that ``layout`` has no place for."""
    out = {names.from_timm(ours): tensor for ours, tensor in state.items()}
    if homeless := [ours for ours in state if names.from_timm(ours) is None]:
        raise no_place(layout, homeless)
    return {theirs: tensor for theirs, tensor in out.items() if theirs is not None}


def no_place(layout: str, names: Iterable[str]) -> WeightsError:
    """The error of a trunk that another layout can't hold."""
    first, *more = names
    rest = f" and {len(more)} more tensors" if more else ""
    return WeightsError(f"{layout} has no place for {first}{rest} of this trunk: export it in timm's format")


def packed_swiglu(vit: Any) -> bool:
    """Whether the MLPs are gated, with gate and value in one ``fc1``, as DINOv2's ViT-g has them."""
    return isinstance(vit.blocks[0].mlp, GluMlp)


def unfold_class_position(state: dict[str, Tensor], vit: Any, *, layout: str) -> None:
    """Give the class token a position embedding where it has none ([1, N, C] to [1, 1 + N, C]).

    timm adds it to the token for trunks with registers; what it was is unknown by now, and zero changes nothing.
    Raises WeightsError where registers have one too, for which ``layout`` has no place.
    """
    if not vit.no_embed_class:
        if "reg_token" in state:
            raise no_place(layout, ["the position embeddings of registers"])
        return
    positions = state["pos_embed"]
    zero = positions.new_zeros(1, 1, positions.shape[2])
    state["pos_embed"] = torch.cat([zero, positions], dim=1)


def is_dinov3(vit: Any) -> bool:
    """Whether ``vit`` is a timm Eva as DINOv3 has it: positions by its rotary embedding and nothing else."""
    return getattr(vit, "pos_embed", 0) is None and type(vit.rope).__name__ == "RotaryEmbeddingDinoV3"


def set_biases(
    state: dict[str, Tensor], block: int, biases: dict[str, tuple[str, Tensor]], vit: Any, notes: Notes
) -> None:
    """Biases of query, key and value (each with its name in the file) as timm's Eva keeps them, or doesn't.

    The released DINOv3 models have none for keys and zeros for the others, so timm has architectures with and
    without. Raises WeightsError rather than drop a bias that isn't zero.
    """
    attention = vit.blocks[block].attn
    for letter, (theirs, bias) in biases.items():
        ours = f"blocks.{block}.attn.{letter}_bias"
        if letter != "k" and getattr(attention, "q_bias", None) is not None:
            state[ours] = bias
            notes.renamed.append((theirs, ours))
        elif not bias.any():
            notes.dropped.append((theirs, "zero, and the trunk has no such bias"))
        else:
            hint = (
                "which timm's trunks never have"
                if letter == "k"
                else "take the timm architecture ending in _qkvb"
            )
            raise WeightsError(f"{theirs} is not zero, and this architecture has no such bias: {hint}")
