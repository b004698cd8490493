"""A rank that hangs is named, with its place, within the timeout, and no process is left."""

import re
import signal
import time
from pathlib import Path

import pytest

from tests.faults.zygote import Ranks, Zygote

TIMEOUT_S = 2.0
LATE_S = 12.0
"""How much later than the timeout the end may come on a busy machine: 5 s for words and stacks, and the starts of steps."""
SETTINGS = [
    "duration=100000",
    f"guard.timeout_s={TIMEOUT_S}",
    "guard.start_timeout_s=60",
    "checkpoint.every=100000",
]


def until_step(run: Path, step: int, seconds: float = 180.0) -> None:
    """Until ``step`` is in the metrics."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rows = run / "metrics.jsonl"
        if rows.is_file() and f'"step": {step},' in rows.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached within {seconds:.0f} s")


def hung(run: Path, ranks: Ranks, *alive: int) -> str:
    """The one verdict; the ranks ``alive`` have ended by it within the timeout."""
    until_step(run, 2)
    begin = time.monotonic()
    assert ranks.wait(*alive, seconds=TIMEOUT_S + 60) == [1] * len(alive)
    assert time.monotonic() - begin < TIMEOUT_S + LATE_S
    (said,) = ranks.said("no progress for")
    assert "guard.timeout_s" in said
    return said


@pytest.mark.parametrize(
    ("fault", "rank", "place"),
    [
        ("data-hangs", 1, "step 3, waiting for a batch"),
        ("step-hangs", 1, "step 3, forward and backward"),
        (
            "save-hangs",
            0,
            "step 6, saving",
        ),  # the save at step 3 goes on beside training; the next waits for it
    ],
)
def test_a_rank_that_hangs_is_named_with_its_place_and_all_end(
    zygote: Zygote, recipe: list[str], tmp_path: Path, fault: str, rank: int, place: str
) -> None:
    every = ["checkpoint.every=3"] if fault == "save-hangs" else []
    with zygote.ranks(2, fault, rank, 3, ["adapt", *recipe, *SETTINGS, *every]) as ranks:
        said = hung(tmp_path / "run", ranks, 0, 1)
        assert not ranks.alive()
    assert re.search(rf"rank {rank} \(host \S+, pid {ranks.pids[rank]}\) is stuck in {place}", said), said
    assert "faulty.py" in (tmp_path / "run" / "hung" / f"rank_000{rank}.txt").read_text()


@pytest.mark.parametrize(("rank", "keeps_store"), [(1, True), (0, True), (0, False)])
def test_a_stopped_process_is_named_by_one_that_runs(
    zygote: Zygote, recipe: list[str], tmp_path: Path, rank: int, keeps_store: bool
) -> None:
    """Where no launcher keeps the store it is rank 0 that has it: stopped, it takes it along."""
    words = ["adapt", *recipe, *SETTINGS]
    with zygote.ranks(2, "none", 0, 0, words, keeps_store=keeps_store) as ranks:
        until_step(tmp_path / "run", 2)
        ranks.send(signal.SIGSTOP, rank)
        said = hung(tmp_path / "run", ranks, 1 - rank)
        assert f"rank {rank} (" in said
        assert "is frozen or its host is gone" in said
        ranks.send(signal.SIGCONT, rank)  # its peer is gone: it must not go on by itself
        assert ranks.wait(rank, seconds=30) != [0]
        assert not ranks.alive()
