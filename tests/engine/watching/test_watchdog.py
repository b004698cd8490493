"""A run in which nothing moves ends, and the rank that keeps it is named; one that moves is left alone."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import HashStore

from essa_dist.engine.watching.guard import GuardConfig
from essa_dist.engine.watching.heartbeat import Beat, Heard, line_of_code, verdict
from essa_dist.engine.watching.watchdog import Watchdog, collective_timeout

BEAT = Beat(number=9, step=7, place="forward and backward", overdue=True, entered=20, host="node1", pid=42)


def judged(*heard: Heard) -> str | None:
    return verdict(dict(enumerate(heard)), silence_s=10)


def test_the_rank_that_has_come_least_far_is_blamed_and_the_place_of_the_others_told() -> None:
    waiting = replace(BEAT, place="waiting for a batch", pid=43, code="loader.py:82, in queues.py:103")
    assert judged(Heard(BEAT), Heard(BEAT), Heard(waiting)) == (
        "rank 2 (host node1, pid 43) is stuck in step 7, waiting for a batch (loader.py:82, in queues.py:103); "
        "the others wait in step 7, forward and backward"
    )
    earlier = judged(Heard(BEAT), Heard(replace(BEAT, step=6, place="saving")))
    assert earlier is not None
    assert earlier.startswith("rank 1 (host node1, pid 42) is stuck in step 6, saving;")


def test_in_one_place_the_rank_that_has_not_entered_the_collective_is_blamed() -> None:
    found = judged(Heard(BEAT), Heard(replace(BEAT, entered=19)))
    assert found is not None
    assert found.startswith("rank 1 ")


def test_ranks_in_the_same_collective_are_not_blamed_but_the_network() -> None:
    found = judged(Heard(BEAT), Heard(BEAT))
    assert found is not None
    assert "all 2 ranks" in found
    assert "network" in found


def test_a_rank_whose_beats_have_stopped_is_frozen_wherever_it_was() -> None:
    ahead = replace(BEAT, step=8, overdue=False)
    found = judged(Heard(BEAT, 0.5), Heard(ahead, 10.0), Heard(BEAT, 0.5))
    assert found is not None
    assert found.startswith(
        "rank 1 (host node1, pid 42) is frozen or its host is gone: no heartbeat for 10 s"
    )
    assert "step 8, forward and backward" in found


def test_nobody_is_blamed_while_a_rank_moves_or_may_still_be_late() -> None:
    assert judged(Heard(BEAT), Heard(replace(BEAT, step=6, overdue=False))) is None
    assert judged(Heard(BEAT), Heard(replace(BEAT, overdue=False), 9.9)) is None


def test_a_rank_that_left_with_an_error_is_blamed_with_the_error() -> None:
    found = judged(Heard(BEAT), Heard(replace(BEAT, overdue=False, ended="DataError: shard 3 is gone")))
    assert found is not None
    assert "rank 1 (host node1, pid 42) has left after step 7" in found
    assert "DataError: shard 3 is gone" in found


def test_of_many_ranks_to_blame_three_are_described() -> None:
    found = judged(Heard(BEAT), *[Heard(replace(BEAT, step=5))] * 6)
    assert found is not None
    assert found.count("is stuck in step 5") == 3
    assert "and 3 more" in found


def test_a_rank_that_never_sent_a_beat_is_blamed() -> None:
    assert judged(Heard(BEAT), Heard(None)) == (
        "rank 1 was never heard of; the others wait in step 7, forward and backward"
    )


def test_a_line_of_code_is_that_of_the_thread_asked_for() -> None:
    release, began = threading.Event(), threading.Event()

    def wait_here() -> None:
        began.set()
        release.wait()

    thread = threading.Thread(target=wait_here)
    thread.start()
    began.wait()
    assert thread.ident is not None
    assert line_of_code(thread.ident).startswith("threading.py:")
    release.set()
    thread.join()


def test_a_beat_comes_through_the_store_as_it_was_sent() -> None:
    assert Beat.from_json(BEAT.to_json()) == BEAT


@contextmanager
def watchdogs(run: Path, n: int, **settings: float) -> Iterator[tuple[list[Watchdog], list[tuple[int, int]]]]:
    """The watchdogs of ``n`` ranks, all in this process; the list gets (rank, exit code) of those that end."""
    store, ends = HashStore(), []
    config = GuardConfig(**{"timeout_s": 0.6, "start_timeout_s": 0.6} | settings)
    with ExitStack() as stack:
        found = [
            Watchdog(
                config, run, rank=r, world_size=n, store=store, end=lambda code, r=r: ends.append((r, code))
            )
            for r in range(n)
        ]
        for watchdog in found:
            stack.enter_context(watchdog)
        yield found, ends


def until(ends: list[tuple[int, int]], n: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while len(ends) < n and time.monotonic() < deadline:
        time.sleep(0.02)


def test_every_rank_ends_with_1_and_one_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with watchdogs(tmp_path, 3) as (ranks, ends):
        for rank in ranks:
            rank.at("waiting for a batch", 4)
        for rank in ranks[:2]:
            rank.at("forward and backward")
        begin = time.monotonic()
        until(ends, 3)
    assert sorted(ends) == [(0, 1), (1, 1), (2, 1)]
    assert time.monotonic() - begin > 0.5
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert said.startswith("no progress for 1 s: rank 2 (host ")
    assert "is stuck in step 4, waiting for a batch" in said
    assert "the others wait in step 4, forward and backward" in said
    assert str(tmp_path / "hung") in said
    stacks = {path.name: path.read_text() for path in (tmp_path / "hung").iterdir()}
    assert set(stacks) == {"rank_0000.txt", "rank_0001.txt", "rank_0002.txt"}
    assert "test_watchdog.py" in stacks["rank_0001.txt"]


def test_the_launcher_is_told_why_so_that_it_says_so_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with watchdogs(tmp_path, 1) as ((rank,), ends):
        rank.at("saving", 3)
        until(ends, 1)
    assert json.loads(file.read_text())["message"]["message"] == caplog.messages[-1]


def test_a_rank_that_moves_keeps_those_alive_that_wait_for_it(tmp_path: Path) -> None:
    with watchdogs(tmp_path, 2) as (ranks, ends):
        ranks[0].at("forward and backward", 1)
        for _ in range(15):  # more than twice the timeout
            ranks[1].at("waiting for a batch", 1)
            time.sleep(0.1)
        assert not ends


def test_a_checkpoint_that_is_still_being_written_is_no_hang(tmp_path: Path) -> None:
    with watchdogs(tmp_path, 2) as (ranks, ends):
        for rank in ranks:
            rank.at("saving", 1)
        for _ in range(15):  # more than twice the timeout
            ranks[0].moved()
            time.sleep(0.1)
        assert not ends
        until(ends, 2)
    assert sorted(ends) == [(0, 1), (1, 1)]


def test_the_first_step_is_given_longer_and_the_second_is_not(tmp_path: Path) -> None:
    with watchdogs(tmp_path, 1, timeout_s=0.4, start_timeout_s=60) as ((rank,), ends):
        rank.at("forward and backward", 8)
        time.sleep(1.0)
        assert not ends
        rank.at("forward and backward", 9)
        until(ends, 1)
        assert ends == [(0, 1)]


def test_a_timeout_of_0_watches_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    with watchdogs(tmp_path, 2, timeout_s=0, start_timeout_s=0):
        assert threading.active_count() == before
    assert collective_timeout(GuardConfig(timeout_s=0)) is None


def test_collectives_give_up_only_after_the_watchdog() -> None:
    timeout = collective_timeout(GuardConfig(timeout_s=60, start_timeout_s=300))
    assert timeout is not None
    assert timeout.total_seconds() > 300


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    with watchdogs(tmp_path, 2):
        pass
    assert not [t for t in threading.enumerate() if t.name in ("watchdog", "heartbeat")]
