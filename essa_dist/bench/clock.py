"""Times on the device's own time line: marks that cost no wait, read when all is done."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from essa_dist.bench.machine import wait


class Clock:
    """Seconds between marks: CUDA events, which the GPU stamps when it gets to them, or the time of day on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._laps: list[list[tuple[str, Any]]] = []
        self._open = False

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Around what is timed; marks outside of it are not kept. An error leaves no lap."""
        self._laps.append([("", self._now())])
        self._open = True
        try:
            yield
        except BaseException:
            self._laps.pop()
            raise
        finally:
            self._open = False

    def mark(self, name: str) -> None:
        """The time since the mark before, or since the lap began, was that of ``name``."""
        if self._open:
            self._laps[-1].append((name, self._now()))

    def read(self) -> list[dict[str, float]]:
        """Seconds of each lap by name, and forget them. Waits for the device."""
        wait(self.device)
        laps, self._laps = self._laps, []
        return [self._seconds(lap) for lap in laps]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _seconds(self, lap: Sequence[tuple[str, Any]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for (_, begin), (name, end) in pairwise(lap):
            seconds = end - begin if self.device.type != "cuda" else begin.elapsed_time(end) / 1e3
            found[name] = found.get(name, 0.0) + seconds
        return found


def seconds_of(
    work: Callable[[], object], device: torch.device, *, warmup: int = 1, times: int = 5
) -> list[float]:
    """Seconds of ``work``, ``times`` times after ``warmup`` that don't count."""
    clock = Clock(device)
    for _ in range(warmup + times):
        with clock.lap():
            work()
            clock.mark("work")
    return [lap["work"] for lap in clock.read()][warmup:]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and, of four values or more, the quarters."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    if len(values) >= 4:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        found |= {"q25": low, "q75": high}
    return found
