"""FSDP2: tensors are spread over the ranks along their first dimension.

Frozen weights of a trunk under an adapter need not be: they have no gradient and no moments, only 2 bytes a number (of a
ViT-g 2.3 GB), and spread they would be gathered anew for each pass, which is most of what ranks would send.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from essa_dist.distributed.collectives import local, rank
from essa_dist.distributed.strategies.interface import Part, whole
from essa_dist.distributed.strategies.moments import moments
from essa_dist.distributed.strategies.replicated import Replicated
from essa_dist.objectives import Objective


class FSDP2(Replicated):
    """``fsdp2``: updates and EMA work on local shards and need no communication."""

    def __init__(self, accelerator: Accelerator, name: str, *, shard_frozen: bool = False) -> None:
        super().__init__(accelerator, name)
        self.shard_frozen = shard_frozen

    @property
    def sharded(self) -> bool:
        """Always."""
        return True

    def wrap(self, optimizer: torch.optim.Optimizer, *, micro_batch: int) -> None:
        objective = self.objective
        blocks = {type(block).__name__ for block in objective.backbone.vit.blocks}
        units = {type(module).__name__ for module in objective.modules()} & objective.units
        # What Accelerate shards one by one, where its own configuration names nothing.
        objective._no_split_modules = sorted(blocks | units)  # type: ignore[assignment]
        if not self.shard_frozen:
            self.accelerator.state.fsdp_plugin.ignored_modules = frozen_modules(objective)
        root, prepared = self.accelerator.prepare(objective, optimizer)
        self.model, self.optimizer = root, prepared.optimizer
        objective.branches.attach()

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        return (
            nullcontext()
        )  # summed over ranks each time: whole gradients would take the memory that was saved

    def update_teacher(self, momentum: float) -> None:
        super().update_teacher(momentum)
        self._forget_gathered()

    def filled(self) -> None:
        super().filled()
        self._forget_gathered()

    def _forget_gathered(self) -> None:
        """Drop tensors that are still gathered, as the root's are after its forward pass.

        The teacher's have no gradient, so no backward pass would: all later passes would see the teacher as it was.
        """
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def parts(self) -> Iterator[Part]:
        branches = self.objective.branches
        for name, parameter in branches.students.items():
            yield shard(f"student/{name}", parameter, parameter)
            for kind, moment in moments(self.optimizer, parameter):
                if moment.ndim or not parameter.ndim:
                    yield shard(f"optimizer/{name}/{kind}", moment, parameter)
                elif rank() == 0:  # the step: a number, alike everywhere
                    yield whole(f"optimizer/{name}/{kind}", local(moment))
        for name, parameter in branches.teachers.items():
            yield shard(f"teacher/{name}", parameter, parameter)
        yield from self.buffer_parts()

    def own(self, parameter: Tensor, whole: Tensor) -> Tensor:
        assert isinstance(parameter, DTensor)
        if whole.ndim != parameter.ndim:
            return whole.to(parameter.device)
        start, stop = rows(parameter)
        mine = whole[start:stop].to(parameter.device)
        return DTensor.from_local(
            mine,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


def frozen_modules(objective: Objective) -> list[nn.Module]:
    """Modules whose tensors are all frozen, of neither branch, and which have no others inside them."""
    branches = objective.branches
    own = {id(p) for group in (branches.students, branches.teachers) for p in group.values()}
    return [
        module
        for module in objective.modules()
        if module._parameters and not list(module.children()) and own.isdisjoint(map(id, module.parameters()))
    ]


def rows(parameter: DTensor) -> tuple[int, int]:
    """First and last row, exclusive, of the first dimension that this rank holds."""
    size = -(-parameter.shape[0] // parameter.device_mesh.size())
    start = min(rank() * size, parameter.shape[0])
    return start, start + parameter.to_local().shape[0]


def shard(name: str, tensor: Tensor, parameter: Tensor) -> Part:
    """This rank's rows of ``tensor``, which is laid out as ``parameter``."""
    assert isinstance(parameter, DTensor)
    start, _ = rows(parameter)
    per_row = parameter.numel() // max(1, parameter.shape[0])
    return Part(name, parameter.shape, start * per_row, local(tensor).detach().flatten())
