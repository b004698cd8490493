"""How fast the ranks add up a tensor.

As nccl-tests define it (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md): for S bytes on each of n
ranks in t seconds the algorithm bandwidth is S / t, and the bus bandwidth 2 (n - 1) / n times that, which does not
depend on n and compares with what the hardware promises. GB are 1e9 bytes.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from essa_dist.distributed.collectives import all_reduce_max, all_reduce_sum, barrier, rank, world_size

SIZES = (4, 1 << 16, 1 << 20, 1 << 24, 1 << 28)
"""Bytes: the first is the latency's, the last but one about an adapter's gradients, the last those of a whole ViT-B."""
SECONDS = 1.0
"""For each size; a size that would take longer is left out, and so are those above it."""
SCALES = 1 << 20
REPEATS = (3, 50)  # fewest, most


class Timing(NamedTuple):
    bytes: int
    seconds: float
    """Of one all-reduce, the mean over repeats, on the slowest rank."""
    algorithm: float
    """GB/s"""
    bus: float
    """GB/s"""


def bandwidths(size: int, seconds: float, n: int) -> tuple[float, float]:
    """Algorithm and bus bandwidth in GB/s of an all-reduce of ``size`` bytes over ``n`` ranks."""
    algorithm = size / seconds / 1e9
    return algorithm, algorithm * 2 * (n - 1) / n


def time_all_reduce(
    device: torch.device, sizes: Sequence[int] = SIZES, seconds: float = SECONDS
) -> list[Timing]:
    """Time sums of fp32 tensors, smallest first; on every rank, which all get the same.

    Raises RuntimeError where a sum is wrong.
    """
    _check_sum(device)
    timings: list[Timing] = []
    for size in sizes:
        last = timings[-1] if timings else None
        # Only what is large takes a time in proportion to its size.
        if last and last.bytes >= SCALES and last.seconds * size / last.bytes * REPEATS[0] > seconds:
            break
        x = torch.zeros(size // 4, device=device)
        _timed(x, device, 2)  # connections and buffers are made by the first
        once = _timed(x, device, 1)
        mean = _timed(x, device, min(max(int(seconds / once), REPEATS[0]), REPEATS[1]))
        timings.append(Timing(size, mean, *bandwidths(size, mean, world_size())))
    return timings


def _check_sum(device: torch.device) -> None:
    n = world_size()
    total = all_reduce_sum(torch.full((3,), rank() + 1.0, device=device)).tolist()
    if total != [n * (n + 1) / 2] * 3:
        raise RuntimeError(f"the sum of 1 to {n} over the ranks came out as {total[0]}")


def _timed(x: torch.Tensor, device: torch.device, repeats: int) -> float:
    """Seconds of one of ``repeats`` sums, on the slowest rank."""
    barrier()
    _wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(x)
    _wait(device)
    mean = (time.perf_counter() - begin) / repeats
    return float(all_reduce_max(torch.tensor(mean, device=device, dtype=torch.float64)).item())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
