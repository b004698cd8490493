"""Work that the ranks of a launcher share in chunks: the same chunks as one process has, so the same numbers.

Chunk i is of rank i mod W. Shapes: n rows in all, m rows of this rank.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from essa_dist.distributed.collectives import all_gather, all_reduce_sum, rank, world_size


def join(device: torch.device) -> None:
    """Meet the other processes of a launcher, where there is one and this process has not met them yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    from essa_dist.distributed.environment import make_accelerator
    from essa_dist.distributed.first_cause import compare_by

    make_accelerator(cpu=device.type == "cpu")
    compare_by(
        dist.distributed_c10d._get_default_store()
    )  # no other thread of an evaluation asks it anything


def own_chunks(n: int, chunk: int) -> list[range]:
    """This rank's rows of 0..n-1."""
    return chunks(n, chunk)[rank() :: world_size()]


def gather_rows(own_m: Tensor, n: int, chunk: int) -> Tensor:
    """All ranks' rows in order, [n, ...], on the device of ``own_m``, which holds those of ``own_chunks(n, chunk)``."""
    if world_size() == 1:
        return own_m
    rows_of = [[i for part in chunks(n, chunk)[r :: world_size()] for i in part] for r in range(world_size())]
    most = max(map(len, rows_of))
    padded = own_m.new_zeros(most, *own_m.shape[1:])
    padded[: len(own_m)] = own_m
    gathered = all_gather(padded.to(_meeting_place())).to(own_m.device)
    whole = own_m.new_empty(n, *own_m.shape[1:])
    for r, rows in enumerate(rows_of):
        whole[rows] = gathered[r * most : r * most + len(rows)]
    return whole


def everywhere(flag: bool) -> bool:
    """Whether ``flag`` holds on every rank; all must call it."""
    if world_size() == 1:
        return flag
    return int(all_reduce_sum(torch.tensor(int(flag), device=_meeting_place())).item()) == world_size()


def chunks(n: int, chunk: int) -> list[range]:
    """0..n-1 in parts of ``chunk``; the last may be shorter."""
    return [range(start, min(start + chunk, n)) for start in range(0, n, chunk)]


def _meeting_place() -> torch.device:
    """Where the process group's tensors must lie."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
