"""What each rank measures of itself, brought together at the logged steps and at no other time."""

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from essa_dist.distributed.collectives import all_gather
from essa_dist.distributed.traffic import Traffic, TrafficMeter
from essa_dist.progress import memory_gib

SETTLED = 2
"""Steps before the first look at communication: DDP sorts its buckets in the first ones, caches fill."""


@dataclass(frozen=True)
class Ranks:
    """One logged step: lists by rank, of the steps since the one before. NaN: not measured."""

    lists: dict[str, list[float]]

    def summary(self) -> dict[str, float]:
        """The keys of a row of metrics (``metrics.MEASURED``), those of communication only where it was measured.

        ``step_s`` is the median over ranks, with its ``_min`` and ``_max``, in seconds; so is ``comm_s``, of the one
        step in which communication was measured; ``comm_share`` is its share of that step, ``comm_bytes`` what a rank
        sends in it.
        """
        step, peak = self.lists["step_s"], self.lists["peak_memory_gib"]
        row = _spread("step_s", step) | {"peak_memory_gib": max(peak)}
        if len(step) == 1:
            return row
        row["data_wait_s_max"] = max(self.lists["data_wait_s"])
        comm, measured = self.lists["comm_s"], self.lists["comm_step_s"]
        if all(math.isfinite(x) for x in comm):
            row |= _spread("comm_s", comm)
            row["comm_share"] = statistics.median(
                min(c / s, 1.0) for c, s in zip(comm, measured, strict=True)
            )
        if all(math.isfinite(x) for x in self.lists["comm_bytes"]):
            row["comm_bytes"] = max(self.lists["comm_bytes"])
        return row


def _spread(key: str, values: list[float]) -> dict[str, float]:
    row = {key: statistics.median(values)}
    return row if len(values) == 1 else row | {f"{key}_min": min(values), f"{key}_max": max(values)}


class Telemetry:
    """This rank's clock; :meth:`step` around each step, :meth:`gather` after a logged one.

    ``communication_every``: steps between two measurements of communication, 0 for none; each takes the next logged
    step. All ranks measure the same step, for they count alike.
    """

    def __init__(self, device: torch.device, *, communication_every: int) -> None:
        self.device, self.every = device, communication_every
        self._steps = 0
        self._measured_at: int | None = None
        self._forget()

    def _forget(self) -> None:
        self._seconds: list[float] = []
        self._waited: list[float] = []
        self._traffic: tuple[Traffic, float] | None = None  # and the seconds of its step

    @contextmanager
    def step(self, *, logged: bool, waited: float) -> Iterator[None]:
        """Around one step on a batch that is there after ``waited`` seconds; ``logged``: :meth:`gather` follows."""
        meter = TrafficMeter(self.device) if logged and self._due() else None
        with meter or nullcontext():
            begin = time.perf_counter()
            yield
            seconds = (
                time.perf_counter() - begin
            )  # reading the record of communication is no part of the step
        if meter is not None:
            self._measured_at = self._steps
            self._traffic = None if meter.traffic is None else (meter.traffic, seconds)
        self._seconds.append(seconds + waited)
        self._waited.append(waited)
        self._steps += 1

    def _due(self) -> bool:
        if not self.every or self._steps < SETTLED:
            return False
        return self._measured_at is None or self._steps - self._measured_at >= self.every

    def gather(self, own: Mapping[str, float] | None = None) -> Ranks:
        """Everything of the steps since the last call, of all ranks; all must call it, with the same keys in ``own``.

        ``own``: more numbers of this rank.
        """
        values = {
            "step_s": statistics.fmean(self._seconds or [math.nan]),
            "data_wait_s": statistics.fmean(self._waited or [math.nan]),
            "peak_memory_gib": memory_gib(peak=True),
            **dict.fromkeys(("comm_s", "comm_bytes", "comm_step_s"), math.nan),
            **(own or {}),
        }
        if self._traffic is not None:
            traffic, seconds = self._traffic
            values["comm_s"] = math.nan if traffic.seconds is None else traffic.seconds
            values |= {"comm_bytes": traffic.sent, "comm_step_s": seconds}
        self._forget()
        mine = torch.tensor([list(values.values())], dtype=torch.float64, device=self.device)
        with torch.no_grad():
            by_rank = all_gather(mine).T.tolist()
        return Ranks(dict(zip(values, by_rank, strict=True)))
