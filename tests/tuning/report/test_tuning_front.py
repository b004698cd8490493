"""The Pareto front is what comparing every pair says it is."""

import math

import numpy as np
import pytest

from essa_dist.tuning.record import Objective
from essa_dist.tuning.report.front import front
from tests.tuning.report.trials import KNN, drawn, sweep, trial

NAMES = (KNN, "memory", "seconds")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("modes", [("max", "min", "min"), ("min", "max", "min")])
def test_the_front_is_what_comparing_every_pair_gives(seed: int, modes: tuple[str, ...]) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, (40, 3)).astype(float)  # with ties
    values[rng.random((40, 3)) < 0.05] = math.nan
    objectives = tuple(Objective(name, mode) for name, mode in zip(NAMES, modes, strict=True))  # type: ignore[arg-type]
    trials = [trial(i, best=dict(zip(NAMES, row, strict=True))) for i, row in enumerate(values.tolist())]

    expected = set()
    for i, a in enumerate(values):
        beaten = False
        for b in values:
            if np.isnan(a).any() or np.isnan(b).any():
                continue
            no_worse = all(b[k] >= a[k] if modes[k] == "max" else b[k] <= a[k] for k in range(3))
            beaten |= no_worse and any(a[k] != b[k] for k in range(3))
        if not beaten and not np.isnan(a).any():
            expected.add(f"t{i:04d}")
    found = [one.name for one in front(sweep(trials, objectives=objectives))]
    assert set(found) == expected
    assert len(found) == len(expected)


def test_without_costs_the_front_is_the_best_trial_and_its_equals() -> None:
    trials = [trial(0, 0.5), trial(1, 0.75), trial(2, 0.75), trial(3)]
    assert [one.name for one in front(sweep(trials))] == ["t0001", "t0002"]


def test_a_trial_that_broke_is_not_on_the_front() -> None:
    made = drawn(6)
    best = made.scored()[0]
    best.status = "diverged"
    assert best.name not in {one.name for one in front(made)}


def test_an_objective_that_no_trial_has_excludes_nobody() -> None:
    trials = [trial(0, 0.5), trial(1, 0.7)]
    both = (Objective(KNN, "max"), Objective("never_measured", "min"))
    assert [one.name for one in front(sweep(trials, objectives=both))] == ["t0001"]
