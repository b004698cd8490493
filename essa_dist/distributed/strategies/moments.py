"""What an optimizer remembers of each parameter."""

from collections.abc import Iterator

import torch
from torch import Tensor

MOMENTS = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}
"""Tensors in the layout of the parameter. AdamW counts its updates as well, in the scalar ``step``."""


def moment_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the moments that are as large as their parameter."""
    return next(names for kind, names in MOMENTS.items() if isinstance(optimizer, kind))


def counts_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether there is a ``step`` beside the moments."""
    return isinstance(optimizer, torch.optim.AdamW)


def state_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Everything that is kept of a parameter that was stepped."""
    return (*moment_names(optimizer), *(("step",) if counts_steps(optimizer) else ()))


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The moments and the scalar ``step``; nothing for a tensor that was never stepped."""
    state = optimizer.state.get(parameter, {})
    yield from ((kind, state[kind]) for kind in state_names(optimizer) if state.get(kind) is not None)


def fill_moment(optimizer: torch.optim.Optimizer, parameter: Tensor, kind: str, value: Tensor) -> None:
    """Set one of them, in ``parameter``'s layout."""
    optimizer.state[parameter][kind] = value.clone()
