"""The first update of a process proves that everything it is to train is reached.

A wrapper that lost a tensor, a graph cut by checkpointing or a module that is never entered leave no trace otherwise:
the loss falls all the same, by what is left.
"""

import torch
from torch import nn

from essa_dist.adapters.branches import Branches
from essa_dist.adapters.interface import Adapter, silent_at_start
from essa_dist.distributed.collectives import all_gather
from essa_dist.errors import UntrainedError

NEVER = -1.0
"""Stands for a tensor without any gradient."""
LOOKS_IF_RANDOM = 3
"""Updates after which zeros are no chance: stochastic depth may drop a block for all images of a small batch."""


def expect_gradients(branches: Branches, adapter: Adapter) -> None:
    """Have the next update's gradients noted, for :func:`check_gradients`."""
    branches.gradients = {}
    branches.looks = LOOKS_IF_RANDOM if any(drops(module) for module in branches.root.modules()) else 1
    branches.silent = {
        name
        for name in branches.students
        if name.startswith("backbone.") and silent_at_start(adapter, name.removeprefix("backbone."))
    }


def check_gradients(branches: Branches) -> None:
    """Before the first update: every trained tensor got a gradient on every rank, and somewhere not only zeros.

    Somewhere, because a rank whose few images have no masked patch has nothing to say to an iBOT head; and not of
    tensors that are behind a zero, as LoRA's A is. Raises UntrainedError on all ranks.
    """
    if branches.gradients is None:
        return
    seen, names = branches.gradients, list(branches.students)
    branches.looks -= 1
    branches.gradients = {} if branches.looks else None
    if not names:
        return
    device = next(iter(branches.students.values())).device
    own = torch.stack(
        [seen[name].to(device) if name in seen else torch.tensor(NEVER, device=device) for name in names]
    )
    largest = all_gather(own[None])  # [ranks, tensors]
    absent = (largest < 0).any(dim=0).tolist()
    zero = (largest.amax(dim=0) == 0).tolist()
    problems = [
        f"{name} ({'no gradient' if gone else 'only zeros'})"
        for name, gone, silent in zip(names, absent, zero, strict=True)
        if gone or (silent and not branches.looks and name not in branches.silent)
    ]
    if not any(zero):
        branches.gradients = None
    if problems:
        raise UntrainedError(
            f"{len(problems)} of {len(names)} trained tensors are not reached by the loss: {', '.join(problems[:4])}; "
            "nothing was updated. Leave them out of adapter.targets, or report it with the run's config.yaml"
        )


def drops(module: nn.Module) -> bool:
    """Whether the module drops anything at random."""
    return any(
        float(getattr(module, name, 0) or 0) > 0 for name in ("drop_prob", "p") if hasattr(module, name)
    )
