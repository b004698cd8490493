"""AdamW's moments, by the parameter they belong to."""

from collections.abc import Iterator

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """``exp_avg``, ``exp_avg_sq`` and the scalar ``step``; nothing for a tensor that was never stepped."""
    state = optimizer.state.get(parameter, {})
    yield from ((kind, state[kind]) for kind in (*MOMENTS, "step") if kind in state)


def fill_moment(optimizer: torch.optim.Optimizer, parameter: Tensor, kind: str, value: Tensor) -> None:
    """Set one of them, in ``parameter``'s layout."""
    optimizer.state[parameter][kind] = value.clone()
