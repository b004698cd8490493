"""Where the time of a step goes, from a few steps under torch's profiler.

Phases are marked around what the engine calls: the model, the backward pass, the update, the teacher's move. Communication
is what is left of the collectives when computing beside them is taken away, so what a strategy hides costs nothing here;
waiting for a slower rank is in it. The rest of a phase is its computing, and the parts add up to the step.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.profiler import record_function

from essa_dist.distributed.strategies import Strategy

MARK = "essa:"
Span = tuple[int, int]
"""Begin and end, ns."""


class StepProfile:
    """Profiles from :meth:`start` on; ``strategy`` is that of a run, whose calls are marked from the beginning."""

    def __init__(self, strategy: Strategy, device: torch.device) -> None:
        self.device = device
        self._profile: torch.profiler.profile | None = None
        self._open: list[Any] = []
        strategy.model.register_forward_pre_hook(lambda *_: self._enter("forward"))
        strategy.model.register_forward_hook(lambda *_: self._leave(), always_call=True)
        names = {"backward": "backward", "update": "optimizer", "update_teacher": "EMA"}
        for method, part in names.items():
            setattr(strategy, method, self._marked(getattr(strategy, method), part))

    def start(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write of its own doings
        self._profile = torch.profiler.profile(activities=kinds)
        self._profile.start()

    def stop(self) -> dict[str, float]:
        """Seconds of each part but data and other, over all steps since the start."""
        assert self._profile is not None
        self._wait()
        self._profile.stop()
        results = self._profile.profiler.kineto_results if self._profile.profiler is not None else None
        self._profile = None
        return {} if results is None else parts_of(results.events(), cuda=self.device.type == "cuda")

    def _marked(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            with self._part(part):
                return function(*args, **kwargs)

        return marked

    @contextmanager
    def _part(self, part: str) -> Iterator[None]:
        self._enter(part)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, part: str) -> None:
        if self._profile is not None:
            self._open.append(record_function(MARK + part))
            self._open[-1].__enter__()

    def _leave(self) -> None:
        if self._open:
            self._wait()  # the end of a phase is that of its kernels
            self._open.pop().__exit__(None, None, None)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def parts_of(events: Iterable[Any], *, cuda: bool) -> dict[str, float]:
    """Seconds by part, of torch's kineto events.

    Collectives are NCCL's kernels, or the operations of gloo; computing is every other kernel, or every operator of the CPU.
    """
    phases: dict[str, list[Span]] = {}
    talking: list[Span] = []
    computing: list[Span] = []
    for event in events:
        name, span = event.name(), (event.start_ns(), event.start_ns() + event.duration_ns())
        on_device = "CUDA" in str(event.device_type())
        if name.startswith(MARK):
            if not on_device:
                phases.setdefault(name.removeprefix(MARK), []).append(span)
        elif cuda and on_device:
            (talking if "nccl" in name.lower() else computing).append(span)
        elif not cuda and name.startswith("gloo:"):
            talking.append(span)
        elif not cuda and name.startswith("aten::"):
            computing.append(span)
    return shares(phases, without(union(talking), union(computing)))


def shares(phases: Mapping[str, list[Span]], exposed: list[Span]) -> dict[str, float]:
    """Seconds of the phases, and of the ``exposed`` communication inside them, which is taken out of theirs."""
    found = {"communication": 0.0}
    for name, spans in phases.items():
        whole = union(spans)
        computing = without(whole, exposed)
        found[name] = length(computing)
        found["communication"] += length(whole) - length(computing)
    return found


def union(spans: Iterable[Span]) -> list[Span]:
    """The same times, in order and apart."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def without(spans: list[Span], others: list[Span]) -> list[Span]:
    """What of ``spans`` lies in none of ``others``; both as :func:`union` gives them."""
    found, at = [], 0
    for begin, end in spans:
        while at < len(others) and others[at][1] <= begin:
            at += 1
        i = at
        while i < len(others) and others[i][0] < end:
            if others[i][0] > begin:
                found.append((begin, others[i][0]))
            begin = max(begin, others[i][1])
            i += 1
        if begin < end:
            found.append((begin, end))
    return found


def length(spans: Iterable[Span]) -> float:
    """Seconds."""
    return sum(end - begin for begin, end in spans) / 1e9
