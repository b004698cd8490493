"""Ranks that are threads, and strategies that only know how to share tensors out: a slow and obvious twin of the real ones."""

import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from essa_dist.distributed.messages import Channel
from essa_dist.distributed.strategies.interface import Part

DEADLINE_S = 30


class ThreadChannel(Channel):
    """As gloo's, between threads of this process."""

    def __init__(self, rank: int, world: int, wires: dict[tuple[int, int], "queue.Queue[Tensor]"]) -> None:
        self.rank, self.world, self._wires = rank, world, wires

    def send(self, x: Tensor, to: int) -> None:
        self._wires[self.rank, to].put(x.clone())

    def receive(self, x: Tensor, source: int) -> None:
        got = self._wires[source, self.rank].get(timeout=DEADLINE_S)
        assert got.shape == x.shape
        assert got.dtype == x.dtype
        x.copy_(got)

    def broadcast(self, x: Tensor) -> None:
        for other in range(1, self.world):
            if self.rank == 0:
                self.send(x, other)
        if self.rank > 0:
            self.receive(x, 0)


def on_ranks(world: int, work: Callable[[ThreadChannel], Any]) -> list[Any]:
    """What ``work`` returns, or the exception it raises, on each of ``world`` ranks."""
    wires: dict[tuple[int, int], queue.Queue[Tensor]] = {
        (i, j): queue.Queue() for i in range(world) for j in range(world)
    }
    ends: list[Any] = [TimeoutError()] * world

    def run(rank: int) -> None:
        try:
            ends[rank] = work(ThreadChannel(rank, world, wires))
        except Exception as error:
            ends[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    return ends


def on_first(whole: Tensor, rank: int, world: int) -> tuple[int, int]:
    """Rank 0 has everything, as under DDP."""
    return (0, whole.numel()) if rank == 0 else (0, 0)


def by_rows(whole: Tensor, rank: int, world: int) -> tuple[int, int]:
    """Rows of the first dimension, as under FSDP2: the last ranks may have none."""
    if whole.ndim == 0:
        return on_first(whole, rank, world)
    rows, per_row = -(-len(whole) // world), whole[0].numel()
    return min(rank * rows, len(whole)) * per_row, min((rank + 1) * rows, len(whole)) * per_row


def by_numbers(whole: Tensor, rank: int, world: int) -> tuple[int, int]:
    """Equal runs of numbers, wherever that cuts a row, as under ZeRO."""
    n = -(-whole.numel() // world)
    return min(rank * n, whole.numel()), min((rank + 1) * n, whole.numel())


LAYOUTS = {"first": on_first, "rows": by_rows, "numbers": by_numbers}


class FakeStrategy:
    """Shares ``wholes`` out over ranks by a layout; what was filled in is in ``filled_in``, by name and start."""

    accelerator = SimpleNamespace(device=torch.device("cpu"))
    optimizer = torch.optim.AdamW([torch.zeros(1)])

    def __init__(self, wholes: dict[str, Tensor], layout: str, rank: int, world: int) -> None:
        self.wholes, self.rank, self.world = wholes, rank, world
        self._layout = LAYOUTS[layout]
        students = [name.removeprefix("student/") for name in wholes if name.startswith("student/")]
        self.objective: Any = SimpleNamespace(branches=SimpleNamespace(students=dict.fromkeys(students)))
        self.filled_in: dict[tuple[str, int], Tensor] = {}
        self.complete = False

    def parts(self) -> Iterator[Part]:
        for name, whole in self.wholes.items():
            start, stop = self._layout(whole, self.rank, self.world)
            yield Part(name, whole.shape, start, whole.flatten()[start:stop])

    def shapes(self) -> dict[str, torch.Size]:
        return {name: t.shape for name, t in self.wholes.items() if not name.startswith("optimizer/")}

    def fill(self, name: str, whole: Tensor) -> None:
        start, stop = self._layout(whole, self.rank, self.world)
        self.filled_in[name, start] = whole.flatten()[start:stop].clone()

    def filled(self) -> None:
        self.complete = True


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Whole tensors of a small run: one that was never stepped, a scalar, a buffer of another dtype, a single number."""
    draw = torch.Generator().manual_seed(seed)
    wholes: dict[str, Tensor] = {}
    for name, shape in (
        ("backbone.vit.proj.weight", (7, 5)),
        ("dino_head.v", (11, 3)),
        ("scale", (1,)),
        ("late", (4,)),
    ):
        for file in ("student", "teacher"):
            wholes[f"{file}/{name}"] = torch.randn(shape, generator=draw)
        if name != "late":
            for kind in ("exp_avg", "exp_avg_sq"):
                wholes[f"optimizer/{name}/{kind}"] = torch.randn(shape, generator=draw)
            wholes[f"optimizer/{name}/step"] = torch.tensor(float(seed + 3))
    wholes["buffers/center"] = torch.randn(13, generator=draw)
    wholes["buffers/backbone.rows"] = torch.arange(6)
    return wholes
