"""Of many ranks that fail, the first says why."""

import pytest
import torch.distributed as dist

from essa_dist.cli import ranks
from essa_dist.cli.failures import Failure, failure
from essa_dist.distributed import first_cause
from essa_dist.errors import DataError, Preempted

CLOSED = RuntimeError(
    "[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:4506: Connection reset by peer"
)


@pytest.fixture(autouse=True)
def three_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(first_cause, "_LOOK_AROUND_S", 0.2)
    monkeypatch.setattr(first_cause, "_store", None)
    first_cause.compare_by(dist.HashStore())


def on(rank: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> ranks.Verdict:
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    return ranks.among_ranks(error, failure(error))


def test_the_rank_that_failed_tells_and_those_it_broke_end_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first = on(1, DataError("a tar is cut"), monkeypatch)
    assert first == (Failure(("a tar is cut",), 1), True)
    for rank in (0, 2):
        assert on(rank, CLOSED, monkeypatch) == (
            Failure(("stopped, because rank 1 said: a tar is cut",), 1),
            False,
        )


def test_what_all_ranks_have_to_say_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [on(rank, Preempted("stopped by SIGTERM"), monkeypatch) for rank in (2, 0, 1)]
    assert [verdict.is_told for verdict in told] == [True, False, False]
    assert {verdict.failure.exit_code for verdict in told} == {75}


def test_a_signal_before_the_ranks_have_met_is_told_once_on_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    told = [on(rank, Preempted("stopped by SIGINT"), monkeypatch).is_told for rank in (2, 0, 1)]
    assert told == [False, True, False]


def test_a_rank_broken_by_one_that_was_preempted_is_preempted(monkeypatch: pytest.MonkeyPatch) -> None:
    on(0, Preempted("stopped by SIGTERM"), monkeypatch)
    assert on(1, CLOSED, monkeypatch).failure.exit_code == 75


def test_ranks_that_were_killed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found, is_told = on(2, CLOSED, monkeypatch)
    assert is_told
    assert found.lines[0].startswith("ranks 0, 1 of 3 killed")  # nothing was heard of them within a while
    found, is_told = on(0, CLOSED, monkeypatch)
    assert (found.lines, is_told) == (("stopped, because another rank was killed",), False)


def test_a_connection_that_broke_between_living_ranks_is_no_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(3):
        first_cause._store.set(f"survivor_{rank}", "")  # type: ignore[union-attr]
    found, _ = on(0, CLOSED, monkeypatch)
    assert found.lines[0].startswith("the ranks lost their connection")
    assert "Connection reset by peer" in found.lines[0]


def test_where_the_store_is_gone_a_broken_rank_speaks_for_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first_cause, "_is_there", lambda store: False)
    assert [on(rank, CLOSED, monkeypatch).is_told for rank in (1, 2)] == [True, False]
    assert on(2, DataError("a tar is cut"), monkeypatch).is_told
    assert [on(rank, Preempted("stopped"), monkeypatch).is_told for rank in (0, 1)] == [True, False]


def test_causes_of_an_earlier_start_are_no_causes_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    for attempt, text in (("0", "a tar is cut"), ("1", "another tar is cut")):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        first_cause.compare_by(store)
        assert on(1, DataError(text), monkeypatch).failure.lines == (text,)


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (CLOSED, True),
        (RuntimeError("Connection closed by peer [10.0.0.2]:4506"), True),
        (dist.DistBackendError("NCCL error"), True),
        (RuntimeError("shape mismatch"), False),
        (DataError("https://x: Connection reset by peer"), False),  # a server, not a rank
        (OSError("Connection reset by peer"), False),
    ],
)
def test_a_broken_collective_is_told_from_other_faults(error: Exception, broken: bool) -> None:
    assert first_cause.is_broken_collective(error) == broken
