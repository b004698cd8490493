"""The fast path: what makes a step cheaper and leaves its result as it is. ``engine.fast=false`` is the oracle of its tests."""

import torch

from essa_dist.objectives import Objective
from essa_dist.settings import Config


class EngineConfig(Config):
    """How a step is computed; what is computed is said elsewhere."""

    fast: bool = True
    """Take the fast path; false: the slow, obvious one, which gives the same up to rounding."""


def make_ready(objective: Objective, config: EngineConfig, dtype: torch.dtype) -> None:
    """Put everything frozen into the form it is computed in; and the fast path, as far as ``config`` wants it.

    To be called once, when adapter and heads are in place, before any wrapper; ``objective`` may hold fake tensors.
    """
    cast_frozen(objective, dtype)


def cast_frozen(objective: Objective, dtype: torch.dtype) -> None:
    """Keep what is never trained in the precision it is computed in; it needs no fp32 master."""
    trained = {
        id(p) for group in (objective.branches.students, objective.branches.teachers) for p in group.values()
    }
    for parameter in objective.parameters():
        if id(parameter) not in trained:
            parameter.data = parameter.data.to(dtype)
