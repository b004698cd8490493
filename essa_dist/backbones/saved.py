"""What autograd keeps for the backward pass, tensor by tensor, and which module's computation asked for it.

Seen by ``torch.autograd.graph.saved_tensors_hooks``: everything that operations and ``ctx.save_for_backward`` keep, and not
what is inside a recomputed region (its inputs, which are kept, are seen), nor what a function puts into ``ctx`` by hand. Compiled
blocks are looked at as they are without.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Kind = Literal["parameter", "cast", "activation"]


class Saved(NamedTuple):
    """A tensor that was kept."""

    module: str
    """Path of the innermost module that was being computed; empty: outside of all."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    """parameter: memory of a parameter or buffer; cast: of the copy that a branch computes with."""
    shared: bool
    """Its memory was kept already, by an earlier row."""
    nbytes: int
    """What it adds: the size of its storage, which a view has whole; 0 if shared, or for a parameter."""


def saved_tensors(model: nn.Module, call: Callable[[], Any]) -> list[Saved]:
    """What ``call``, a pass through ``model``, leaves for its backward pass, in the order of keeping."""
    rows: list[Saved] = []
    inside: list[tuple[str, nn.Module]] = []
    known = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    alive: dict[int, Tensor] = {}  # so that no address is given out twice

    def keep(tensor: Tensor) -> Tensor:
        place = _storage(tensor)
        shared, kind = place in alive, _kind(tensor, place, known, inside)
        alive.setdefault(place, tensor.detach())
        fresh = kind != "parameter" and not shared
        nbytes = tensor.untyped_storage().nbytes() if fresh else 0
        path = inside[-1][0] if inside else ""
        rows.append(Saved(path, tuple(tensor.shape), tensor.dtype, kind, shared, nbytes))
        return tensor

    hooks: list[Any] = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(_entering(inside, path), prepend=True))
        hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None, always_call=True))
    try:
        # Compiled code would be compiled again for these hooks, and its tensors belong to no module.
        with (
            torch.compiler.set_stance("force_eager"),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def by_module(rows: Sequence[Saved], *, unit: float = 1.0) -> dict[str, float]:
    """Activations' bytes of each module that keeps some, in units of ``unit`` bytes."""
    sums: dict[str, float] = {}
    for row in rows:
        if row.kind == "activation" and row.nbytes:
            sums[row.module] = sums.get(row.module, 0.0) + row.nbytes / unit
    return sums


def _entering(inside: list[tuple[str, nn.Module]], path: str) -> Callable[[nn.Module, Any], None]:
    return lambda module, args: inside.append((path, module))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _kind(tensor: Tensor, place: int, known: set[int], inside: list[tuple[str, nn.Module]]) -> Kind:
    if place in known:
        return "parameter"
    if inside:
        module = inside[-1][1]
        own = (vars(module).get(name) for name in module._parameters)
        if any(isinstance(cast, Tensor) and _storage(cast) == place for cast in own):
            return "cast"
    return "activation"
