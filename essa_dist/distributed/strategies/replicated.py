"""One process, or DDP: every rank holds everything, gradients are averaged."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from essa_dist.distributed.collectives import rank
from essa_dist.distributed.strategies.clipping import clip_gradients
from essa_dist.distributed.strategies.interface import Part, Strategy, whole
from essa_dist.distributed.strategies.moments import fill_moment, moments


class Replicated(Strategy):
    """``single`` and ``ddp``."""

    def wrap(self, optimizer: torch.optim.Optimizer, *, micro_batch: int) -> None:
        self.optimizer = optimizer
        # Not the optimizer: all that Accelerate would add to it is a loss scale, which is the engine's.
        with warnings.catch_warnings():  # of a newer name of an option that Accelerate passes on to DDP
            warnings.simplefilter("ignore", FutureWarning)
            self.model = self.accelerator.prepare_model(self.objective)

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
        yield from self.buffer_parts()

    def fill_parameter(self, branch: str, name: str, whole: Tensor) -> None:
        branches = self.objective.branches
        parameter = (branches.students if branch == "student" else branches.teachers)[name]
        parameter.copy_(self.own(parameter, whole))

    def fill_moment(self, name: str, kind: str, whole: Tensor) -> None:
        parameter = self.objective.branches.students[name]
        fill_moment(self.optimizer, parameter, kind, self.own(parameter, whole))

    def own(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """What this rank holds of ``whole``, as ``parameter`` is laid out, on its device; scalars as they are."""
        return whole.to(parameter.device)

    def filled(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
