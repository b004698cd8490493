"""The trial's arithmetic, and its errors as lines."""

import pytest

from essa_dist.doctor.world.allreduce import bandwidths
from essa_dist.doctor.world.page import _size
from essa_dist.doctor.world.trial import Trial, judge_trial
from tests.doctor.world.records import world

GOOD = Trial(strategy="zero2", backend="nccl")


@pytest.mark.parametrize(
    ("size", "seconds", "n", "algorithm", "bus"),
    [
        (2_000_000_000, 0.5, 2, 4.0, 4.0),
        (3_000_000_000, 1.0, 4, 3.0, 4.5),
        (1_000_000_000, 0.25, 8, 4.0, 7.0),
    ],
)
def test_bandwidths_are_those_of_nccl_tests(
    size: int, seconds: float, n: int, algorithm: float, bus: float
) -> None:
    assert bandwidths(size, seconds, n) == pytest.approx((algorithm, bus))


def test_sizes_are_written_in_binary_units() -> None:
    assert [_size(n) for n in (4, 1 << 16, 1 << 20, 1 << 28)] == ["4 B", "64 KiB", "1 MiB", "256 MiB"]


def test_a_trial_that_went_well_everywhere_shows_nothing() -> None:
    assert judge_trial(world(), dict.fromkeys(range(4), GOOD), 25) == []


def test_one_error_of_several_ranks_is_one_line_and_those_that_waited_for_them_are_not_told() -> None:
    failed = Trial(error="DistBackendError: no route", stage="making the process group")
    trials = {0: Trial(error="late", stage="adding up"), 1: failed, 2: GOOD, 3: failed}
    (found,) = judge_trial(world(), trials, 25)
    assert found.text.startswith(
        "ranks 1, 3 failed at making the process group: DistBackendError: no route; "
    )
    assert "NCCL_SOCKET_IFNAME=eth3" in found.text


def test_ranks_that_hang_are_told_with_the_place() -> None:
    late = Trial(error="late", stage="adding up a tensor over nccl")
    (found,) = judge_trial(world(), {0: late, 1: GOOD, 2: late, 3: late}, 25)
    assert found.text.startswith("ranks 0, 2-3 hung at adding up a tensor over nccl for 25 s")


def test_ranks_with_unlike_strategies_are_told() -> None:
    trials = dict.fromkeys((0, 1, 2), GOOD) | {3: Trial(strategy="ddp", backend="nccl")}
    (found,) = judge_trial(world(), trials, 25)
    assert "Accelerate chose ddp over nccl on rank 3, zero2 over nccl on ranks 0-2" in found.text
