"""What a strategy is: how one module and its optimizer are spread over processes.

The engine knows no more of ZeRO, FSDP2 or DDP than this. A step is, on every rank::

    for each micro-batch:
        with strategy.micro_batch(last):       # ranks talk in the last one only, where they can wait so long
            losses = strategy.model(batch)
            strategy.backward(losses["total"])
    norm, applied = strategy.update(...)        # unscale, clip, and one optimizer step unless a gradient is not finite
    strategy.update_teacher(momentum)

Whole tensors, for checkpoints, have names that no strategy and no number of ranks changes: ``student/NAME``,
``teacher/NAME``, ``optimizer/NAME/exp_avg``, ``.../exp_avg_sq``, ``.../step``, ``buffers/NAME``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from essa_dist.distributed.collectives import rank
from essa_dist.distributed.strategies.clipping import Clipping
from essa_dist.objectives import Objective


@dataclass(frozen=True)
class Part:
    """What this rank holds of one whole tensor."""

    name: str
    """As above, such as ``optimizer/backbone.vit.norm.bias/exp_avg``."""
    shape: torch.Size
    """Of the whole tensor."""
    start: int
    """Where ``values`` begin in the whole tensor, flattened."""
    values: Tensor
    """Flat, on the device; a view of live state that the next update changes."""


def whole(name: str, tensor: Tensor) -> Part:
    """All of ``tensor``."""
    return Part(name, tensor.shape, 0, tensor.detach().flatten())


class Strategy(ABC):
    """One way of spreading a run; see the module's text for a step."""

    name: str
    """ddp, zero2, ...: what Accelerate really chose."""
    accelerator: Accelerator
    objective: Objective
    model: nn.Module
    """What to call in place of the objective."""
    clipping: Clipping
    optimizer: torch.optim.Optimizer
    """Whose ``param_groups`` take learning rates and weight decays."""

    @property
    def sharded(self) -> bool:
        """Whether ranks hold different parts of a tensor, so that all of them must make each forward pass."""
        return False

    def __init__(self, accelerator: Accelerator, name: str) -> None:
        self.accelerator, self.name = accelerator, name

    def prepare(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clipping: Clipping,
        *,
        micro_batch: int,
    ) -> None:
        """Wrap; ``micro_batch`` images are what one rank sees in one forward. Once, before anything else."""
        self.objective, self.clipping = objective, clipping
        self.wrap(optimizer, micro_batch=micro_batch)

    @abstractmethod
    def wrap(self, optimizer: torch.optim.Optimizer, *, micro_batch: int) -> None:
        """Set ``model`` and ``optimizer``, from the objective and ``optimizer``."""

    @abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; ``last``: an update follows."""

    @abstractmethod
    def backward(self, loss: Tensor, *, scale: float) -> None:
        """Add the gradients of ``scale * loss``, in the end averaged over ranks."""

    @abstractmethod
    def update(self, *, scale: float, held: set[str]) -> tuple[Tensor, bool]:
        """Divide by ``scale``, clip, step; the gradient norm before clipping, and whether anything was updated.

        Nothing is when the norm is not finite; all ranks agree. The tensors named in ``held`` stay as they are and
        their moments as if they had never been stepped.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients of an update that is not made."""

    @abstractmethod
    def update_teacher(self, momentum: float) -> None:
        """``teacher <- momentum * teacher + (1 - momentum) * student`` on what this rank holds."""

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """Everything trained that this rank has to give to a checkpoint.

        Over all ranks the parts of a name cover the whole tensor once. A tensor that was never stepped has no
        optimizer state. No communication.
        """

    def shapes(self) -> dict[str, torch.Size]:
        """Names and whole shapes of what a checkpoint must hold (``student/``, ``teacher/``, ``buffers/``), on every rank."""
        branches = self.objective.branches
        kinds = (("student", branches.students), ("teacher", branches.teachers))
        trained = {
            f"{kind}/{name}": self.whole_shape(p) for kind, group in kinds for name, p in group.items()
        }
        return trained | {f"buffers/{name}": b.shape for name, b in self.objective.named_buffers()}

    def whole_shape(self, parameter: Tensor) -> torch.Size:
        """Of the whole tensor of which ``parameter`` may be a part."""
        return parameter.shape

    def buffer_parts(self) -> Iterator[Part]:
        """Buffers are alike on all ranks, so rank 0 gives them."""
        if rank() == 0:
            for name, buffer in self.objective.named_buffers():
                yield whole(f"buffers/{name}", buffer)

    @torch.no_grad()
    def fill(self, name: str, whole: Tensor) -> None:
        """Take this rank's part of a whole tensor; on every rank, in any order, then :meth:`filled`. No communication."""
        kind, _, rest = name.partition("/")
        if kind == "buffers":
            self.objective.get_buffer(rest).copy_(whole)
        elif kind == "optimizer":
            owner, _, moment = rest.rpartition("/")
            self.fill_moment(owner, moment, whole)
        else:
            self.fill_parameter(kind, rest, whole)

    @abstractmethod
    def fill_parameter(self, branch: str, name: str, whole: Tensor) -> None:
        """``branch``: student or teacher."""

    @abstractmethod
    def fill_moment(self, name: str, kind: str, whole: Tensor) -> None:
        """``kind``: exp_avg, exp_avg_sq or step, of the student tensor ``name``."""

    @abstractmethod
    def filled(self) -> None:
        """Make live what :meth:`fill` was given. On every rank."""
