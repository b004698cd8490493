"""Importance finds what decides, and says nothing where it can't know."""

import numpy as np
import pytest

from essa_dist.tuning.report.importance import FEWEST, Importance, importance
from tests.tuning.report.trials import drawn, sweep, trial


def found(made: object) -> Importance:
    assert isinstance(made, Importance), made
    return made


@pytest.mark.parametrize("seed", range(2))
def test_a_parameter_that_decides_everything_comes_first(seed: int) -> None:
    answer = found(importance(drawn(16, seed=seed, extra=2)))
    assert answer.names[0] == "optim.lr"
    assert answer.shares[0] > 0.6
    assert sum(answer.shares) == pytest.approx(1)
    assert list(answer.shares) == sorted(answer.shares, reverse=True)


def test_to_lack_a_parameter_is_credited_to_the_one_it_depends_on() -> None:
    rng = np.random.default_rng(0)
    trials = []
    for i in range(30):
        has = bool(i % 2)
        params = {"kind": "lora" if has else "full"} | ({"rank": int(rng.integers(1, 64))} if has else {})
        trials.append(trial(i, (0.7 if has else 0.5) + 0.01 * rng.normal(), params=params))
    answer = found(importance(sweep(trials)))
    assert answer.names == ("kind", "rank")
    assert answer.shares[0] > 0.9
    assert answer.explained > 0.8


def test_scores_by_chance_are_not_explained() -> None:
    rng = np.random.default_rng(1)
    trials = [trial(i, rng.random(), params={"a": rng.random(), "b": rng.random()}) for i in range(30)]
    assert found(importance(sweep(trials))).explained < 0.2


def test_words_beside_numbers_and_truth_values_count_too() -> None:
    trials = [
        trial(
            i,
            0.8 if i % 3 == 0 else 0.4 + 0.001 * i,
            params={"rank": "full" if i % 3 == 0 else 4 + i, "on": i % 2 == 0},
        )
        for i in range(24)
    ]
    assert found(importance(sweep(trials))).names == ("rank", "on")


def test_the_same_sweep_has_the_same_importance() -> None:
    assert importance(drawn(12)) == importance(drawn(12))


def test_where_nothing_can_be_said_the_reason_is() -> None:
    assert "too few trials" in str(importance(drawn(FEWEST - 1)))
    assert "too few trials" in str(importance(drawn(12, extra=4)))  # 7 parameters
    same = [trial(i, 0.5, params={"a": i, "b": i}) for i in range(12)]
    assert "don't differ in their score" in str(importance(sweep(same)))
    alike = [trial(i, 0.1 * i, params={"a": 1, "b": i}) for i in range(12)]
    assert "fewer than two parameters differ" in str(importance(sweep(alike)))
