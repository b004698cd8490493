"""The sample plan's promises: a true permutation per epoch, one order for any ranks, resumable at any step."""

import os
import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from essa_dist.data.plan import ROUNDS, SamplePlan, rank_slice, sample_seed, stable_seed
from essa_dist.errors import UsageError

GOLDEN = "[2, 3, 5, 1, 0, 4] 2316876048098334616 2031145402731867750"


@pytest.mark.parametrize(("n", "seed"), [(2, 0), (7, 1), (100, 2), (1001, 3)])
def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own(n: int, seed: int) -> None:
    plan = SamplePlan(n, seed)
    epochs = [plan.at(range(epoch * n, (epoch + 1) * n)) for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(n))
    if n > 2:
        assert epochs[0] != epochs[1] != epochs[2]


def one_by_one(plan: SamplePlan, epoch: int, place: int) -> int:
    """The sample at ``place`` by "swap or not" in Python's own integers: the oracle."""
    keys = (
        np.random.Philox(key=stable_seed("order", plan.n, plan.seed, epoch)).random_raw(2 * ROUNDS).tolist()
    )
    x, mask = place, 2**64 - 1
    for i in range(ROUNDS):
        partner = (keys[2 * i] - x) % plan.n
        z = max(x, partner) ^ keys[2 * i + 1]
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        x = partner if (z ^ (z >> 31)) >> 63 else x
    return x


@pytest.mark.parametrize("n", [2, 3, 257, 10**8 + 7])
def test_the_order_is_the_published_cipher_and_runs_backwards(n: int) -> None:
    plan = SamplePlan(n, seed=11)
    places = sorted({0, 1, n // 3, n - 2, n - 1})
    found = plan.samples(5, places)
    assert found.tolist() == [one_by_one(plan, 5, place) for place in places]
    assert plan.places(5, found).tolist() == places


def test_every_order_of_four_samples_is_equally_likely() -> None:
    drawn = Counter(tuple(SamplePlan(4, seed).samples(0, range(4))) for seed in range(720))
    chi_squared = sum((count - 30) ** 2 / 30 for count in drawn.values())
    assert len(drawn) == 24
    assert chi_squared < 50  # 23 degrees of freedom: exceeded by chance once in 1,000


def test_neighbours_in_storage_are_not_neighbours_in_the_order() -> None:
    order = SamplePlan(100_000, seed=0).samples(0, range(100_000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(order)) < 100).mean() == pytest.approx(0.002, rel=0.3)


def test_a_step_of_a_hundred_million_samples_costs_no_memory_that_grows() -> None:
    plan = SamplePlan(10**8, seed=0)
    tracemalloc.start()
    plan.indices(390_000, global_batch=256)  # the last batch of the epoch, and the first of the next
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_batch_may_cross_epochs_without_losing_or_repeating_a_position() -> None:
    plan = SamplePlan(5, seed=0)
    stream = [index for step in range(15) for index in plan.indices(step, global_batch=4)]
    for epoch in range(12):
        assert sorted(stream[epoch * 5 : epoch * 5 + 5]) == list(range(5))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_the_slices_of_all_ranks_join_to_the_global_order(world_size: int) -> None:
    plan = SamplePlan(31, seed=4)
    for step in (0, 3, 17):
        joined: list[int] = []
        for rank in range(world_size):
            joined += plan.indices(step, 12)[rank_slice(12, rank, world_size)]
        assert joined == SamplePlan(31, seed=4).indices(step, 12)


@pytest.mark.parametrize("start", [0, 1, 9, 40])
def test_a_plan_made_anew_at_any_step_gives_the_same_tail(start: int) -> None:
    whole = SamplePlan(13, seed=5)
    before = [whole.indices(step, 6) for step in range(50)]
    resumed = SamplePlan(13, seed=5)
    assert [resumed.indices(step, 6) for step in range(start, 50)] == before[start:]


def test_the_order_depends_on_the_seed_and_on_n() -> None:
    first = SamplePlan(50, seed=0).indices(0, 50)
    assert first != SamplePlan(50, seed=1).indices(0, 50)
    assert [index for index in SamplePlan(51, seed=0).indices(0, 51) if index < 50] != first


def test_order_and_seeds_are_the_same_in_another_process_and_never_change() -> None:
    code = (
        "from essa_dist.data.plan import *;"
        "print(SamplePlan(6, 7).indices(0, 6), sample_seed(1, 2), stable_seed('a', 3))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert shown.strip() == f"{SamplePlan(6, 7).indices(0, 6)} {sample_seed(1, 2)} {stable_seed('a', 3)}"
    # Written down once: a change of these numbers breaks the resume of every run.
    assert shown.strip() == GOLDEN


def test_seeds_of_neighbouring_positions_and_seeds_differ() -> None:
    seeds = {sample_seed(seed, position) for seed in range(30) for position in range(300)}
    assert len(seeds) == 9000


def test_an_uneven_global_batch_is_refused_with_the_nearest_even_one() -> None:
    with pytest.raises(UsageError, match=r"global batch 10 can't be shared evenly by 4 ranks.* 8"):
        rank_slice(10, rank=0, world_size=4)
    with pytest.raises(UsageError, match="nearest that can is 4"):
        rank_slice(1, rank=0, world_size=4)


def test_fewer_than_two_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="data set of 1 sample"):
        SamplePlan(1, seed=0)
