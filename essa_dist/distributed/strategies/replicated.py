"""One process, or DDP: every rank holds everything, gradients are averaged."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from essa_dist.distributed.collectives import rank
from essa_dist.distributed.strategies.clipping import Clipping, clip_gradients
from essa_dist.distributed.strategies.interface import Part, Strategy
from essa_dist.distributed.strategies.moments import fill_moment, moments
from essa_dist.objectives import DINOv2Objective


class Replicated(Strategy):
    """``single`` and ``ddp``."""

    def __init__(self, accelerator: Accelerator, name: str) -> None:
        self.accelerator, self.name = accelerator, name

    def prepare(
        self,
        objective: DINOv2Objective,
        optimizer: torch.optim.Optimizer,
        clipping: Clipping,
        *,
        micro_batch: int,
    ) -> None:
        self.objective, self.optimizer, self.clipping = objective, optimizer, clipping
        # Not the optimizer: all that Accelerate would add to it is a loss scale, which is the engine's.
        with warnings.catch_warnings():  # of a newer name of an option that Accelerate passes on to DDP
            warnings.simplefilter("ignore", FutureWarning)
            self.model = self.accelerator.prepare_model(objective)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        if last:
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.no_sync(self.model)
        return context

    def backward(self, loss: Tensor, *, scale: float) -> None:
        (scale * loss).backward()

    def update(self, *, scale: float, held: set[str]) -> tuple[Tensor, bool]:
        students = self.objective.branches.students
        for name in held:
            students[name].grad = None  # AdamW passes over tensors without one
        norm = clip_gradients(students, self.clipping, scale=scale, sharded=self.sharded)
        if applied := bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.discard()
        return norm, applied

    sharded = False
    """Whether ranks hold different parts of a tensor."""

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def update_teacher(self, momentum: float) -> None:
        self.objective.branches.update_teacher(momentum)

    def parts(self) -> Iterator[Part]:
        if rank() != 0:
            return
        branches = self.objective.branches
        for name, parameter in branches.students.items():
            yield whole(f"student/{name}", parameter)
            for kind, moment in moments(self.optimizer, parameter):
                yield whole(f"optimizer/{name}/{kind}", moment)
        for name, parameter in branches.teachers.items():
            yield whole(f"teacher/{name}", parameter)
        for name, buffer in self.objective.named_buffers():
            yield whole(f"buffers/{name}", buffer)

    def shapes(self) -> dict[str, torch.Size]:
        branches = self.objective.branches
        kinds = (("student", branches.students), ("teacher", branches.teachers))
        trained = {f"{kind}/{name}": p.shape for kind, group in kinds for name, p in group.items()}
        return trained | {f"buffers/{name}": b.shape for name, b in self.objective.named_buffers()}

    @torch.no_grad()
    def fill(self, name: str, whole: Tensor) -> None:
        kind, _, rest = name.partition("/")
        branches = self.objective.branches
        if kind == "optimizer":
            parameter = branches.students[rest.rpartition("/")[0]]
            fill_moment(self.optimizer, parameter, rest.rpartition("/")[2], self.own(parameter, whole))
        elif kind == "buffers":
            self.objective.get_buffer(rest).copy_(whole)
        else:
            parameter = (branches.students if kind == "student" else branches.teachers)[rest]
            parameter.copy_(self.own(parameter, whole))

    def own(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """What this rank holds of ``whole``, as ``parameter`` is laid out, on its device; scalars as they are."""
        return whole.to(parameter.device)

    def filled(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def whole(name: str, tensor: Tensor) -> Part:
    """All of ``tensor``."""
    return Part(name, tensor.shape, 0, tensor.detach().flatten())
