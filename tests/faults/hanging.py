"""More drills for ``benchmarks/drills.py``: ranks that hang, numbers that are not finite, disks, a second job.

Each befalls the run in a folder and returns the seconds from the fault to the end of all processes; a new start must then
go on as if nothing had been. AssertionError where a promise is broken.
"""

import random
import signal
import time
from pathlib import Path

from essa_dist.runfolder import committed_checkpoints
from tests.distributed.launching import REPOSITORY, Processes
from tests.faults.drilling import START_S, STOP_S, Drill, Started, last_step, told

TIMEOUT_S = 5.0
LATE_S = 15.0
"""Beyond the timeout: stacks and words, and a busy machine."""
LAUNCHER_S = 30.0
"""How long torchrun waits for a stopped process before it kills it."""


def _verdict(going: Started) -> str:
    found = [line for line in going.said().splitlines() if "no progress for" in line]
    assert len(found) == 1, going.said()
    return found[0]


def _timeouts(first_s: float = START_S) -> list[str]:
    return [f"guard.timeout_s={TIMEOUT_S}", f"guard.start_timeout_s={first_s}"]


def stopped_process(drill: Drill, run: Path, rng: random.Random) -> float:
    """``kill -STOP`` of a random rank at a random step: named, all ended, and nothing left by the launcher."""
    assert drill.launcher is not None
    # Torchrun kills the whole process group of a rank, so that its workers can't remove what they keep in TMPDIR.
    with drill.started(run, *_timeouts(), "data.workers=0") as going:
        going.wait_for_steps(rng.randint(2, 12))
        rank = rng.randrange(drill.ranks)
        begin = time.monotonic()
        going.rank_processes()[rank].send_signal(signal.SIGSTOP)
        (ended,) = going.end(TIMEOUT_S + LATE_S + LAUNCHER_S)
        seconds = time.monotonic() - begin
    assert ended.exit_code != 0
    said = _verdict(going)
    assert f"rank {rank} (" in said, said
    assert "is frozen or its host is gone" in said, said
    return seconds


def hung(drill: Drill, run: Path, rng: random.Random, *, fault: str, place: str) -> float:
    """A random rank, or where it saves the first, hangs at a random step in ``place``; named with it, and all ended."""
    step = rng.randint(3, 12)
    rank = 0 if fault == "save-hangs" else rng.randrange(drill.ranks)
    with drill.started(run, *_timeouts(), fault=(fault, rank, step)) as going:
        going.wait_for_steps(step - 1)
        begin = time.monotonic()
        ends = going.end(2 * TIMEOUT_S + LATE_S + LAUNCHER_S)
        seconds = time.monotonic() - begin
    assert all(ended.exit_code != 0 for ended in ends), going.said()
    said = _verdict(going)
    assert f"rank {rank} (" in said, said
    assert f", {place}" in said, said
    return seconds


def not_finite(drill: Drill, run: Path, rng: random.Random) -> float:
    """One sample of a random rank is NaN at a random step: all stop before the update, with the one sample recorded."""
    step, rank = rng.randint(2, 16), rng.randrange(drill.ranks)
    with drill.started(run, fault=("nan-once", rank, step)) as going:
        going.wait_for_steps(step - 1)
        begin = time.monotonic()
        ends = going.end(STOP_S)
        seconds = time.monotonic() - begin
    assert all(ended.exit_code == 1 for ended in ends), going.said()
    (said,) = told(ends)
    assert f"step {step}: not finite" in said, said
    assert f"1 sample of rank {rank}" in said, said
    assert (run / "diverged" / f"step_{step:08d}" / "samples.json").is_file()
    return seconds


def disk_full(drill: Drill, run: Path, rng: random.Random) -> float:
    """No space left at the save of a random checkpoint: one clear line, and the ones before as they were."""
    step = rng.choice((4, 8, 12))
    with drill.started(run, fault=("disk-full-at-save", 0, step)) as going:
        going.wait_for_steps(step - 1)
        begin = time.monotonic()
        ends = going.end(STOP_S)
        seconds = time.monotonic() - begin
    assert all(ended.exit_code == 1 for ended in ends), going.said()
    (said,) = told(ends)
    assert "No space left on device" in said, said
    saved = [int(folder.name.removeprefix("step_")) for folder in committed_checkpoints(run)]
    assert saved == list(range(4, step, 4))[-2:], saved
    return seconds


def second_job(drill: Drill, run: Path, rng: random.Random) -> float:
    """A job that would overwrite a run under way is refused; the first, held for as long, goes on."""
    assert drill.launcher is not None
    with drill.started(run) as going:
        going.wait_for_steps(rng.randint(1, 3))
        ranks = going.rank_processes()
        for rank in ranks:
            rank.suspend()
        before = last_step(run)
        command = [
            *drill.launcher(),
            "-m",
            "essa_dist",
            "adapt",
            *drill.words,
            f"out={run}",
            "overwrite=true",
        ]
        with Processes([command], env={"PYTHONPATH": str(REPOSITORY)}) as second:
            begin = time.monotonic()
            ends = second.wait(START_S)
            seconds = time.monotonic() - begin
        assert all(ended.exit_code != 0 for ended in ends), ends
        (said,) = told(ends)
        assert "another process trains in" in said, said
        assert last_step(run) == before
        for rank in ranks:
            rank.resume()
        assert all(ended.exit_code == 0 for ended in going.end(START_S)), going.said()
    return seconds
