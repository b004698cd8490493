"""A rank that is slower than the others makes all of them wait: which one it is, how slow, and at what."""

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

log = logging.getLogger(__name__)

WINDOW = 10
"""Observations of each rank of which the median counts."""
NOTICEABLE = 0.1
"""Share of a step: a rank that keeps the others by less is not worth a warning, however small its own part is."""


@dataclass(frozen=True)
class Pace:
    """One rank's seconds of one step, or means of several. The waits for other ranks are in none but ``step_s``."""

    step_s: float
    """The whole step, about the same on all ranks."""
    data_s: float
    """Waiting for data."""
    compute_s: float
    """Its own computing: the step without waiting for data and without communication."""

    @property
    def own_s(self) -> float:
        return self.data_s + self.compute_s


class Slowest(NamedTuple):
    """The rank whose own part of a step is the longest."""

    rank: int
    ratio: float
    """Its own seconds over the median of the other ranks'."""
    is_data: bool
    """Whether more of the difference is waiting for data than computing."""
    own_s: float
    others_s: float
    step_s: float


def paces(lists: Mapping[str, Sequence[float]]) -> list[Pace] | None:
    """From a logged step's lists by rank (``telemetry.Ranks``); None where communication was not measured in it."""
    computing = [step - talk for step, talk in zip(lists["comm_step_s"], lists["comm_s"], strict=True)]
    if not all(map(math.isfinite, computing)):
        return None
    data = lists["data_wait_s"]
    whole = [step + wait for step, wait in zip(lists["comm_step_s"], data, strict=True)]
    return [Pace(*numbers) for numbers in zip(whole, data, computing, strict=True)]


def slowest(ranks: Sequence[Pace]) -> Slowest | None:
    """Compare the ranks, in their order; None where there is nobody to compare with."""
    if len(ranks) < 2:
        return None
    rank = max(range(len(ranks)), key=lambda r: ranks[r].own_s)
    own, others = ranks[rank], [pace for r, pace in enumerate(ranks) if r != rank]
    others_s = median(pace.own_s for pace in others)
    more_data_s = own.data_s - median(pace.data_s for pace in others)
    more_compute_s = own.compute_s - median(pace.compute_s for pace in others)
    ratio = own.own_s / max(others_s, 1e-9)
    return Slowest(rank, ratio, more_data_s > more_compute_s, own.own_s, others_s, own.step_s)


class StragglerWatch:
    """Names the slowest rank in the metrics, and warns when it is ``ratio`` times slower than the others."""

    def __init__(self, ratio: float, *, patience: int, hosts: Sequence[str]) -> None:
        """``hosts``: the name of each rank's machine. ``patience``: steps between two warnings of the same rank."""
        self.ratio, self.patience, self.hosts = ratio, patience, hosts
        self._window: deque[Sequence[Pace]] = deque(maxlen=WINDOW)
        self._warned: dict[int, int] = {}

    def check(self, step: int, lists: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Take a logged step's lists; ``slowest_rank`` and its ``slowest_ratio``, where they can be told.

        Medians over the window, so that one step with a cold file or a checkpoint accuses nobody: there is no warning
        before three observations.
        """
        if (observed := paces(lists)) is None:
            return {}
        self._window.append(observed)
        medians = [_median(of_rank) for of_rank in zip(*self._window, strict=True)]
        found = slowest(medians)
        if found is None:
            return {}
        kept_s = found.own_s - found.others_s
        is_slow = found.ratio >= self.ratio and kept_s >= NOTICEABLE * found.step_s
        if is_slow and len(self._window) >= 3:
            self._warn(step, found)
        return {"slowest_rank": found.rank, "slowest_ratio": found.ratio}

    def _warn(self, step: int, found: Slowest) -> None:
        last = self._warned.get(found.rank)
        if last is not None and step - last < self.patience:
            return
        self._warned[found.rank] = step
        log.warning(
            "step %d: rank %d (host %s) is slow and the others wait for it: %.3g s of its own a step, they have %.3g s "
            "(%.1f times); most of it is %s",
            step,
            found.rank,
            self.hosts[found.rank],
            found.own_s,
            found.others_s,
            found.ratio,
            "waiting for data: look at its storage, its CPU and data.workers"
            if found.is_data
            else "computing: look at its device's clock and temperature, and for other processes there",
        )


def _median(of_rank: Sequence[Pace]) -> Pace:
    return Pace(
        step_s=median(pace.step_s for pace in of_rank),
        data_s=median(pace.data_s for pace in of_rank),
        compute_s=median(pace.compute_s for pace in of_rank),
    )
