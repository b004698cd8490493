"""Which samples, on which ranks, made a step not finite.

The loss alone doesn't tell: Sinkhorn-Knopp and KoLeo spread one sample's NaN over all ranks. The trunk sees each image
by itself, so a sample is to blame where its own class token is not finite.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SampleWatch:
    """Keeps, of the newest step, one number per image and crop that is finite where its class token is.

    Costs one sum over the features of each forward pass of the trunk, and no synchronisation until it is asked.
    """

    def __init__(self, objective: nn.Module, backbone: nn.Module) -> None:
        """``objective`` is called with batches, and calls ``backbone`` with crops whose rows repeat the batch's samples."""
        self._seen: list[tuple[tuple[str, ...], Tensor]] = []  # keys [B], sums [V * B] of V crops
        self._keys: tuple[str, ...] = ()
        self._step = -1
        objective.register_forward_pre_hook(self._enter)
        backbone.register_forward_hook(self._look)

    def not_finite(self) -> list[str]:
        """Keys of the samples of the newest step, in their order, whose class token is not finite in some crop."""
        found: dict[str, None] = {}
        for keys, sums in self._seen:
            bad_B = (~torch.isfinite(sums)).view(-1, len(keys)).any(dim=0)
            found |= {key: None for key, bad in zip(keys, bad_B.tolist(), strict=True) if bad}
        return list(found)

    def _enter(self, objective: nn.Module, args: tuple[Any, ...]) -> None:
        batch = args[0] if args and not callable(args[0]) else None  # else other work than the losses
        self._keys = batch.keys if batch else ()
        if batch and batch.step != self._step:
            self._step, self._seen = batch.step, []

    def _look(self, backbone: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for features in (output if isinstance(output, list) else [output]) if self._keys else ():
            # A copy: no view of all tokens is kept.
            sums = features.cls.detach().sum(dim=-1, dtype=torch.float32)
            self._seen.append((self._keys, sums))


def findings(numbers: Mapping[str, float], suspects: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """What one rank knows of a step that was not finite, of JSON's types, for :func:`blame`."""
    return {
        "suspects": list(suspects),
        "keys": list(keys),
        "values": {name: repr(value) for name, value in numbers.items()},
        "finite": all(math.isfinite(value) for value in numbers.values()),
    }


def blame(of_ranks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By rank, of those to blame: the ``keys`` of their samples and their ``values``.

    Those are the ranks and samples with class tokens that are not finite; else, where only losses are not, the ranks
    with such losses and all their samples; else, where only the gradient is, which is of all ranks, all of them.
    """
    exact = {rank: found["suspects"] for rank, found in enumerate(of_ranks) if found["suspects"]}
    losses = {rank: found["keys"] for rank, found in enumerate(of_ranks) if not found["finite"]}
    chosen = exact or losses or {rank: found["keys"] for rank, found in enumerate(of_ranks)}
    return {str(rank): {"keys": keys, "values": of_ranks[rank]["values"]} for rank, keys in chosen.items()}


def in_words(blamed: Mapping[str, Mapping[str, Any]]) -> str:
    """``2 samples of rank 1`` or ``12 samples of ranks 0, 1``."""
    n_samples = sum(len(of_rank["keys"]) for of_rank in blamed.values())
    plural = "s" if len(blamed) > 1 else ""
    return f"{n_samples} sample{'' if n_samples == 1 else 's'} of rank{plural} {', '.join(_shortened(list(blamed)))}"


def _shortened(ranks: Sequence[str]) -> Iterator[str]:
    yield from ranks[:4]
    if len(ranks) > 4:
        yield f"... ({len(ranks)} ranks)"
