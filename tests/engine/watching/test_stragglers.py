"""A slow rank is named with its host, how slow it is and at what; ordinary unevenness accuses nobody."""

import logging

import pytest

from essa_dist.engine.watching.stragglers import Pace, StragglerWatch, slowest

HOSTS = ["node1", "node1", "node7", "node7"]


def lists(
    computing: list[float], waiting: list[float] | None = None, step_s: float = 1.0
) -> dict[str, list[float]]:
    """A logged step's lists by rank, of seconds; a rank talks as long as it neither computes nor waits."""
    waiting = waiting or [0.0] * len(computing)
    within = [step_s - data for data in waiting]
    return {
        "data_wait_s": waiting,
        "comm_step_s": within,
        "comm_s": [step - own for step, own in zip(within, computing, strict=True)],
    }


def watching(n: int) -> StragglerWatch:
    return StragglerWatch(1.5, patience=50, hosts=HOSTS[:n])


def check(of_ranks: dict[str, list[float]], caplog: pytest.LogCaptureFixture) -> list[str]:
    watch = watching(len(of_ranks["comm_s"]))
    for i in range(3):
        watch.check(10 * i, of_ranks)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_rank_that_computes_slowly_is_named_with_host_and_ratio(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = check(lists([0.7, 0.7, 1.4, 0.7], step_s=1.5), caplog)
    assert "rank 2 (host node7)" in said
    assert "1.4 s of its own a step, they have 0.7 s (2.0 times)" in said
    assert "most of it is computing" in said


def test_a_rank_that_waits_for_data_is_told_from_one_that_computes(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = check(lists([0.5, 0.4], [0.01, 0.6], step_s=1.1), caplog)
    assert "rank 1 " in said
    assert "waiting for data" in said


def test_a_slow_rank_among_two_is_compared_with_the_other_alone() -> None:
    found = slowest([Pace(2.1, 0.0, 2.0), Pace(2.1, 0.0, 0.5)])
    assert found is not None
    assert (found.rank, found.ratio) == (0, 4.0)


def test_less_than_the_ratio_is_no_warning_but_is_in_the_metrics(caplog: pytest.LogCaptureFixture) -> None:
    watch = watching(2)
    for i in range(5):
        row = watch.check(i, lists([0.99, 0.7]))
    assert row == {"slowest_rank": 0, "slowest_ratio": pytest.approx(0.99 / 0.7)}
    assert not caplog.records


def test_a_difference_too_small_for_the_step_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert not check(lists([0.02, 0.06]), caplog)


def test_one_slow_step_accuses_nobody(caplog: pytest.LogCaptureFixture) -> None:
    watch = watching(2)
    for i in range(10):
        watch.check(i, lists([0.7, 7.0 if i == 4 else 0.7], step_s=8))
    assert not caplog.records


def test_the_same_rank_is_named_again_only_after_patience(caplog: pytest.LogCaptureFixture) -> None:
    watch = watching(2)
    for step in range(0, 120, 10):  # the first at 20
        watch.check(step, lists([0.7, 2.0], step_s=2.1))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["step 20", "step 70"]


def test_nothing_is_said_where_there_is_nothing_to_compare() -> None:
    assert watching(1).check(1, lists([0.7])) == {}
    unmeasured = lists([0.7, 0.7]) | {"comm_s": [float("nan")] * 2}
    assert watching(2).check(1, unmeasured) == {}
