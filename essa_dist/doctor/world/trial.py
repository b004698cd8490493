"""The run's own process group, made and used once, under a deadline."""

import logging
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
from pydantic import BaseModel

from essa_dist.distributed.collectives import leave, world_size
from essa_dist.distributed.environment import backend, make_accelerator, strategy_name
from essa_dist.doctor.world.allreduce import Timing, time_all_reduce
from essa_dist.doctor.world.findings import Finding
from essa_dist.doctor.world.limited import Attempt, Late
from essa_dist.doctor.world.meeting import Meeting
from essa_dist.doctor.world.record import RankRecord
from essa_dist.doctor.world.words import ranks

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_PATIENCE = 4  # torch's own limit, in deadlines: ours comes first, and NCCL's watchdog would kill the process


class Trial(BaseModel):
    """What one rank saw of it."""

    strategy: str = ""
    backend: str = ""
    timings: list[Timing] = []
    error: str = ""
    """Empty where it went well."""
    stage: str = ""
    """Where the rank was when time was up."""


def try_out(meeting: Meeting, *, cpu: bool) -> Trial:
    """Make the Accelerator as a run does, and time sums. Comes back within the meeting's seconds, whatever hangs."""
    stage = ["making the process group"]
    attempt = Attempt(lambda: _trial(stage, meeting.seconds, cpu=cpu))
    end = time.monotonic() + meeting.seconds
    while not attempt.done(_PAUSE_S) and time.monotonic() < end:
        if meeting.knows("trial-failed"):  # the others would wait for that rank in vain
            break
    try:
        return attempt.result()
    except Late:
        return Trial(error="late", stage=stage[0])
    except Exception as error:  # NCCL, gloo and DeepSpeed have errors of many kinds
        meeting.say("trial-failed", str(meeting.place.rank))
        first = next(iter(str(error).strip().splitlines()), "no message")
        return Trial(error=f"{type(error).__name__}: {first}", stage=stage[0])


def _trial(stage: list[str], seconds: float, *, cpu: bool) -> Trial:
    accelerator = make_accelerator(cpu=cpu, timeout=timedelta(seconds=_PATIENCE * seconds))
    trial = Trial(strategy=strategy_name(accelerator), backend=backend())
    if world_size() > 1:
        stage[0] = f"adding up a tensor over {trial.backend}"
        trial.timings = time_all_reduce(torch.device(accelerator.device))
        stage[0] = "leaving the process group"
        leave()
    return trial


def judge_trial(records: Sequence[RankRecord], trials: dict[int, Trial], seconds: float) -> list[Finding]:
    """One line for what kept the ranks from adding up a tensor; several ranks' one error is one line."""
    by_rank = {r.rank: r for r in records}
    errors: dict[str, list[int]] = {}
    for rank, trial in trials.items():
        if trial.error and trial.error != "late":
            errors.setdefault(trial.error, []).append(rank)
    found = [
        Finding(f"{ranks(who)} failed at {trials[who[0]].stage}: {error}; {_remedy(by_rank[who[0]])}")
        for error, who in errors.items()
    ]
    late = [rank for rank, trial in trials.items() if trial.error == "late"]
    if late and not found:
        found.append(
            Finding(
                f"{ranks(late)} hung at {trials[late[0]].stage} for {seconds:.0f} s, though all reach the store: "
                f"{_remedy(by_rank[late[0]])}"
            )
        )
    names = {(t.strategy, t.backend) for t in trials.values() if not t.error}
    if len(names) > 1:
        told = ", ".join(
            f"{strategy} over {name} on {ranks([k for k, t in trials.items() if (t.strategy, t.backend) == (strategy, name)])}"
            for strategy, name in sorted(names)
        )
        found.append(Finding(f"Accelerate chose {told}: launch all nodes with the same config file"))
    return found


def _remedy(record: RankRecord) -> str:
    name = record.interface or "INTERFACE"
    return (
        "let the hosts reach each other on all ports, and name the interface to use: "
        f"GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name} (NCCL_DEBUG=INFO says what NCCL tries)"
    )
