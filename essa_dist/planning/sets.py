"""Which tensors are trained, which are frozen, and what comes with them, from the real objects of a run."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from essa_dist.backbones.quantised import packed_away
from essa_dist.distributed.strategies.moments import moments
from essa_dist.objectives import Objective


@dataclass(frozen=True)
class Unit:
    """What FSDP2 gathers and frees together: a block, a head, or the rest."""

    name: str
    trained: int
    """Bytes of one branch's trained tensors."""
    frozen: int


@dataclass(frozen=True)
class ParameterSets:
    """Tensors, all of them counted once, and their bytes."""

    frozen: list[Tensor]
    """Never trained, of neither branch; buffers too."""
    trained: list[Tensor]
    """The student's."""
    teacher: list[Tensor]
    moments: list[Tensor]
    """The optimizer's."""
    units: list[Unit] = field(default_factory=list)
    trunk_parameters: int = 0
    """Trained numbers of the trunk ..."""
    head_parameters: int = 0
    """... and of the heads."""
    frozen_parameters: int = 0


def parameter_sets(objective: Objective, optimizer: torch.optim.Optimizer) -> ParameterSets:
    """Of an objective that is built, and an optimizer that was stepped."""
    branches = objective.branches
    own = {id(p) for group in (branches.students, branches.teachers) for p in group.values()}
    frozen = [p for p in objective.parameters() if id(p) not in own]
    kept = [m for p in branches.students.values() for _, m in moments(optimizer, p)]
    of_trunk = branches.count("backbone.")
    return ParameterSets(
        frozen=[*frozen, *objective.buffers()],
        trained=list(branches.students.values()),
        teacher=list(branches.teachers.values()),
        moments=kept,
        units=units(objective),
        trunk_parameters=of_trunk,
        head_parameters=branches.count() - of_trunk,
        frozen_parameters=sum(p.numel() for p in frozen) + packed_away(objective),
    )


def units(objective: Objective) -> list[Unit]:
    """Blocks, heads and, last, what is outside of them."""
    students = {id(p) for p in objective.branches.students.values()}
    teachers = {id(p) for p in objective.branches.teachers.values()}
    inside: set[int] = set()
    found = []
    for name, module in [*units_of(objective, blocks=True), ("", objective)]:
        own = [p for p in module.parameters() if id(p) not in inside]
        inside.update(map(id, own))
        trained = sum(nbytes(p) for p in own if id(p) in students)
        frozen = sum(nbytes(p) for p in own if id(p) not in students | teachers)
        found.append(Unit(name, trained, frozen))
    return found


def units_of(objective: Objective, *, blocks: bool = False) -> list[tuple[str, nn.Module]]:
    """Modules besides the trunk's blocks that are spread one by one; with ``blocks`` those too."""
    of_trunk = {id(block) for block in objective.backbone.vit.blocks} if blocks else set()
    return [
        (name, module)
        for name, module in objective.named_modules()
        if id(module) in of_trunk or type(module).__name__ in objective.units
    ]


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
