"""What a step sends to other ranks and for how long, whatever strategy made it talk.

Bytes: torch's flight recorder notes every collective of NCCL and gloo, also those that DDP starts in C++, DeepSpeed
from its hooks and FSDP2 from autograd. Seconds: NCCL times its collectives itself; those of gloo are seen by a profiler
of the CPU. Reading costs some 20 ms and the profiler slows a step on a CPU, so this is for one step in many.
"""

import importlib
import logging
import os
import pickle
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from essa_dist.distributed.collectives import world_size

log = logging.getLogger(__name__)

_WIDTH = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "BFloat16": 2, "Half": 2, "Short": 2}
_RETIRED_S = 0.5
"""NCCL's watchdog looks at finished collectives every 100 ms; longer than this it isn't waited for."""


@dataclass(frozen=True)
class Traffic:
    """Between start and stop of a :class:`TrafficMeter`, on this rank."""

    calls: int
    """Collectives."""
    sent: int
    """Bytes this rank sends, by ring algorithms; of a broadcast and the like the mean over ranks."""
    seconds: float | None
    """While at least one collective was under way, computing beside it or not; None: not measured."""
    by_operation: dict[str, int] = field(default_factory=dict)
    """``sent`` of each kind: all_reduce, all_gather, ..."""


class TrafficMeter:
    """A context manager around what is to be measured, on the thread that trains; then see ``traffic``.

    ``traffic`` stays None with one process, and where torch keeps no record (no flight recorder in it, switched off by
    ``TORCH_FR_BUFFER_SIZE=0``, or more collectives than it holds).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.traffic: Traffic | None = None
        self._profile: torch.profiler.profile | None = None
        if world_size() > 1 and device.type == "cuda":
            _let_nccl_time()

    def __enter__(self) -> Self:
        if world_size() > 1:
            self._begin_ns = time.time_ns()
            # A profiler that somebody else runs can't be joined.
            if self.device.type == "cpu" and not torch._C._autograd._profiler_enabled():
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write two lines each time
                self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
                self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if world_size() == 1:
            return
        seconds = None
        if self._profile is not None:
            self._profile.stop()
            seconds = _gloo_seconds(self._profile)
            self._profile = None
        if error is not None:
            return
        try:
            found = recorded(self._begin_ns, self.device)
            self.traffic = None if found is None else summarise(found, seconds)
        except (
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as unknown:  # torch promises no form of its record
            log.warning("what ranks send can't be read from torch's flight recorder: %r", unknown)


def recorded(since_ns: int, device: torch.device) -> list[dict[str, Any]] | None:
    """The collectives of all groups that this process began after ``since_ns`` (as ``time.time_ns``), in order.

    ``device``: where training communicates from. None where torch has no record, or no longer the whole of it.
    """
    deadline = time.monotonic() + _RETIRED_S
    while True:
        entries = _dump(device)
        if not entries or (entries[0]["record_id"] > 0 and entries[0]["time_created_ns"] > since_ns):
            return None
        new = [e for e in entries if e["time_created_ns"] >= since_ns and not _between_two(_operation(e))]
        late = [entry for entry in new if not entry["retired"]]
        if not late or time.monotonic() > deadline:
            return new
        time.sleep(0.02)


def _dump(device: torch.device) -> list[dict[str, Any]] | None:
    """The flight recorder's entries, oldest first; None where there is none."""
    bindings = importlib.import_module("torch._C._distributed_c10d")
    name = "_dump_nccl_trace" if device.type == "cuda" else "_dump_fr_trace"
    dump = getattr(bindings, name, None)
    if dump is None:
        return None
    found = pickle.loads(dump(includeCollectives=True, includeStackTraces=False, onlyActive=False))
    return sorted(found.get("entries") or [], key=lambda entry: int(entry["record_id"]))


def summarise(entries: Iterable[dict[str, Any]], seconds: float | None) -> Traffic:
    """``seconds``: measured otherwise; None: the sum of what the recorder says."""
    by_operation: dict[str, int] = {}
    calls, timed = 0, []
    for entry in entries:
        operation = _operation(entry)
        calls += 1
        timed.append(entry.get("duration_ms"))
        by_operation[operation] = by_operation.get(operation, 0) + sent(operation, entry)
    known = [ms for ms in timed if ms is not None]
    if seconds is None and known:
        seconds = sum(known) / 1e3
    return Traffic(calls, sum(by_operation.values()), seconds, by_operation)


def _operation(entry: dict[str, Any]) -> str:
    """``all_reduce`` of ``gloo:all_reduce``, ``send`` of ``nccl:send 0->1``."""
    name: str = entry["profiling_name"]
    return name.partition(":")[2].partition(" ")[0].lstrip("_")


def _between_two(operation: str) -> bool:
    """Messages between two ranks: those of a checkpoint that is written in the background, none of a step's."""
    return operation.startswith(("send", "recv"))


def sent(operation: str, entry: dict[str, Any]) -> int:
    """Bytes that a rank sends for one recorded collective of n ranks, by ring algorithms.

    Source of the factors: NVIDIA's nccl-tests, PERFORMANCE.md, "bus bandwidth".
    """
    n = _group_size(entry)
    given = _bytes(entry["input_sizes"], entry["input_dtypes"])
    if "barrier" in operation:
        return 0
    if operation.startswith("all_reduce"):
        return round(2 * given * (n - 1) / n)
    if operation.startswith(("all_gather", "allgather")):
        return given * (n - 1)
    if operation == "reduce" and entry["profiling_name"].startswith("gloo"):
        return round(given * (n - 1) / n * (1 + 1 / n))  # a reduce-scatter, then a gather
    return round(given * (n - 1) / n)  # reduce_scatter, all_to_all, and rooted ones in the mean


def _group_size(entry: dict[str, Any]) -> int:
    try:
        group = torch._C._distributed_c10d._resolve_process_group(entry["process_group"][0])
        return group.size()
    except (RuntimeError, KeyError, ValueError, IndexError):  # a group that is no more
        return world_size()


def _bytes(sizes: list[list[int]], dtypes: list[str]) -> int:
    return sum(prod(size) * _WIDTH.get(dtype, 1) for size, dtype in zip(sizes, dtypes, strict=False))


def _gloo_seconds(profile: torch.profiler.profile) -> float | None:
    """The union of the times in which a collective of gloo was under way."""
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    if results is None:
        return None
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in results.events()
        if event.name().startswith("gloo:") and not _between_two(event.name()[5:])
    )
    total, reached = 0, 0
    for begin, end in spans:
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total / 1e9


def _let_nccl_time() -> None:
    try:
        dist.group.WORLD._enable_collectives_timing()  # type: ignore[union-attr]
    except (AttributeError, RuntimeError) as error:
        log.warning("the time of communication is not measured: %s", error)
