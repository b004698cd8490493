"""Collectives that are identities without a process group, so that losses need not know of ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over the processes (no gradient), in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def all_reduce_max(x: Tensor) -> Tensor:
    """Elementwise maximum of ``x`` over the processes (no gradient), in place."""
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` holds on at least one process; all must call it."""
    if world_size() == 1:
        return flag  # and the device need not be waited for
    return bool(all_reduce_max(torch.tensor(float(flag), device=device)).item())


def local(tensor: Tensor) -> Tensor:
    """This rank's shard; of an ordinary tensor the whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def leave() -> None:
    """Leave the process group, where there is one; for the end of a command.

    Left to the end of the interpreter, gloo's threads can abort the process after all its work was done.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BC: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BC) for _ in range(world_size())]
        dist.all_gather(parts, x_BC.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every rank computed the same loss of the gathered rows, so the sum is W times the true
        # gradient; averaging gradients over ranks afterwards (as DDP does) divides by W again.
        (grad,) = grads
        grad = all_reduce_sum(grad.contiguous().clone())
        return grad.chunk(world_size())[rank()]


def all_gather(x_BC: Tensor) -> Tensor:
    """Rows of all processes in rank order, [W * B, C]; differentiable. Each rank must hold B rows."""
    if world_size() == 1:
        return x_BC
    gathered: Tensor = _AllGather.apply(x_BC)  # type: ignore[no-untyped-call]
    return gathered
