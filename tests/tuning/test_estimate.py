"""What a sweep will cost, against a simulation."""

import math

import numpy as np
import pytest

from essa_dist.settings import load
from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.estimate import expected_share


def config(**more: object) -> TuneConfig:
    return load(
        TuneConfig, {"base": "b", "out": "o", "space": {"optim.lr": {"choices": [1e-3, 1e-2]}}, **more}
    )


def simulated(grace: float, reduction: float, trials: int = 40_000) -> float:
    """Mean part of a run, where the best 1 / reduction of those at a rung go on."""
    rng = np.random.default_rng(0)
    quality, going, spent, at = rng.random(trials), np.arange(trials), np.zeros(trials), grace
    while at < 1 and len(going):
        spent[going] = at
        best = going[np.argsort(quality[going])[::-1]]
        going = best[: round(len(best) / reduction)]
        at *= reduction
    spent[going] = 1
    return float(spent.mean())


@pytest.mark.parametrize(
    ("grace", "reduction"), [(0.2, 3), (0.1, 2), (0.05, 4), (0.5, 2), (1.0, 3), (0.3, 1.5), (0.9, 8)]
)
def test_the_share_of_a_run_is_what_a_simulation_of_the_rungs_finds(grace: float, reduction: float) -> None:
    asha = {"kind": "asha", "grace": grace, "reduction": reduction}
    assert expected_share(config(scheduler=asha)) == pytest.approx(simulated(grace, reduction), abs=2e-3)


def test_without_stopping_each_run_is_whole() -> None:
    assert expected_share(config()) == 1
    assert expected_share(config(scheduler={"kind": "pbt"})) == 1
    assert math.isclose(expected_share(config(scheduler={"kind": "asha", "grace": 1.0})), 1)
