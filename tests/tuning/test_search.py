"""Which trials there are: random, grid and Optuna's, and that a search goes on where it was."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from essa_dist.settings import load
from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.schedule import Bounds, drawn, population
from essa_dist.tuning.search import NUMBER, searcher
from essa_dist.tuning.space import Parameter, Space

pytest.importorskip("ray")
SPACE: dict[str, Any] = {
    "adapter.kind": {"choices": ["apla", "lora", "bitfit"]},
    "adapter.rank": {
        "low": 2,
        "high": 64,
        "log": True,
        "integer": True,
        "when": {"adapter.kind": ["apla", "lora"]},
    },
    "optim.lr": {"low": 1e-5, "high": 1e-1, "log": True},
    "objective.ibot_weight": {"low": 0.0, "high": 1.0, "step": 0.25},
}


def config(search: dict[str, Any], **more: Any) -> TuneConfig:
    return load(TuneConfig, {"base": "b", "out": "o", "space": SPACE, "search": search} | more)


def ask(search: Any, number: int) -> dict[str, Any]:
    found: dict[str, Any] = search.suggest(f"trial{number}")
    return found


def score(drawn: dict[str, Any]) -> float:
    """Best is lora of rank 16 at lr=1e-3."""
    off = (math.log10(drawn["optim.lr"]) + 3) ** 2
    if drawn["adapter.kind"] != "lora":
        return -off - 4
    return -off - 0.3 * (math.log2(drawn["adapter.rank"]) - 4) ** 2


def run(
    told: TuneConfig, trials: int, result: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    search, draws = searcher(told), []
    for number in range(trials):
        draws.append(ask(search, number))
        search.on_trial_complete(f"trial{number}", result(draws[-1]))
    return draws


def is_allowed(one: dict[str, Any]) -> bool:
    known = Space({name: Parameter(**told) for name, told in SPACE.items()})
    again = known.draw(lambda name, _: one[name])
    return (
        again == {name: value for name, value in one.items() if name != NUMBER}
        and ("adapter.rank" not in one or (isinstance(one["adapter.rank"], int) and 2 <= one["adapter.rank"] <= 64))
        and 1e-5 <= one["optim.lr"] <= 1e-1
        and one["objective.ibot_weight"] in (0, 0.25, 0.5, 0.75, 1)
    )  # fmt: skip


def test_random_trials_are_the_draws_of_the_space_by_their_number() -> None:
    told = config({"kind": "random", "trials": 5}, seed=3)
    draws = run(told, 5, lambda one: {"canary_knn": score(one)})
    assert draws == [Space(told.space).sample(3, number) | {NUMBER: number} for number in range(5)]


def test_a_grid_gives_each_point_once_and_then_says_that_it_is_over() -> None:
    told = config({"kind": "grid"})
    search, points = searcher(told), list(Space(told.space).grid())
    assert [ask(search, number) for number in range(len(points))] == [
        point | {NUMBER: number} for number, point in enumerate(points)
    ]
    assert search.suggest("one more") == type(search).FINISHED


def test_optuna_finds_the_good_region_better_than_random_draws() -> None:
    def best_of_last(kind: str, seed: int) -> float:
        draws = run(
            config({"kind": kind, "trials": 60}, seed=seed), 60, lambda one: {"canary_knn": score(one)}
        )
        assert all(map(is_allowed, draws))
        assert [one[NUMBER] for one in draws] == list(range(60))
        return float(np.mean([score(one) for one in draws[30:]]))

    found = [(best_of_last("optuna", seed), best_of_last("random", seed)) for seed in range(3)]
    assert all(tpe > random + 1 for tpe, random in found), found


def test_optuna_looks_for_small_numbers_where_the_objective_says_so() -> None:
    told = config({"kind": "optuna", "trials": 40}, objectives={"step_s": "min"})
    draws = run(told, 40, lambda one: {"step_s": -score(one)})
    assert np.mean([score(one) for one in draws[25:]]) > np.mean([score(one) for one in draws[:8]]) + 1


def test_optuna_seeks_several_objectives_at_a_time() -> None:
    told = config(
        {"kind": "optuna", "trials": 60, "startup": 10}, objectives={"canary_knn": "max", "step_s": "min"}
    )

    def result(one: dict[str, Any]) -> dict[str, float]:
        lr = math.log10(one["optim.lr"])
        return {"canary_knn": -((lr + 2) ** 2), "step_s": (lr + 4) ** 2}

    lrs = [math.log10(one["optim.lr"]) for one in run(told, 60, result)]
    assert np.mean([-4.3 <= lr <= -1.7 for lr in lrs[30:]]) > 0.8  # the front is between -4 and -2
    assert min(lrs[30:]) < -3.3
    assert max(lrs[30:]) > -2.7


@pytest.mark.parametrize("objectives", [{"canary_knn": "max"}, {"canary_knn": "max", "step_s": "min"}])
def test_a_trial_without_a_number_stops_no_search(objectives: dict[str, str]) -> None:
    told = config({"kind": "optuna", "trials": 30, "startup": 3}, objectives=objectives)
    search = searcher(told)
    for number in range(12):
        assert is_allowed(ask(search, number))
        if number % 4 == 0:
            search.on_trial_complete(f"trial{number}", dict.fromkeys(objectives, math.nan))
        elif number % 4 == 1:
            search.on_trial_complete(f"trial{number}", None, error=True)
        elif number % 4 == 2:
            search.on_trial_complete(f"trial{number}", dict.fromkeys(objectives, float(number)))
        # and one that is still running


@pytest.mark.parametrize("kind", ["random", "grid", "optuna"])
def test_a_search_that_was_saved_goes_on_where_it_was(tmp_path: Path, kind: str) -> None:
    told = config({"kind": kind} | ({} if kind == "grid" else {"trials": 20}), seed=5)
    straight = run(told, 14, lambda one: {"canary_knn": score(one)})
    search = searcher(told)
    for number in range(9):
        one = ask(search, number)
        search.on_trial_complete(f"trial{number}", {"canary_knn": score(one)})
    search.save(str(tmp_path / "state"))
    other = searcher(told)
    other.restore(str(tmp_path / "state"))
    for number in range(9, 14):
        one = ask(other, number)
        assert one == straight[number]
        other.on_trial_complete(f"trial{number}", {"canary_knn": score(one)})


def test_trials_of_a_population_begin_with_the_draws_of_their_numbers() -> None:
    told = config({"kind": "random", "trials": 4}, scheduler={"kind": "pbt", "mutate": ["optim.lr"]}, seed=2)
    of_ray = population(told)
    assert of_ray[NUMBER] == {"grid_search": [0, 1, 2, 3]}
    for number in range(4):

        class Spec:
            config = {NUMBER: number}  # noqa: RUF012

        first = of_ray["optim.lr"].func(Spec)
        whole = Space(told.space).sample(2, number)
        assert first == whole["optim.lr"]
        assert drawn(told, {NUMBER: number, "optim.lr": first}) == whole
        assert drawn(told, {NUMBER: number, "optim.lr": 0.5}) == whole | {"optim.lr": 0.5}


def test_a_changed_number_stays_in_its_range() -> None:
    told = config({"kind": "random"})
    bounds = Bounds(
        {name: told.space[name] for name in ("adapter.kind", "optim.lr", "objective.ibot_weight")}
    )
    given = {NUMBER: 1, "adapter.kind": "lora", "optim.lr": 0.12, "objective.ibot_weight": 0.9}
    assert bounds(given) == given | {"optim.lr": 0.1, "objective.ibot_weight": 1.0}
    low = bounds(given | {"optim.lr": 8e-6, "objective.ibot_weight": 0.6})
    assert (low["optim.lr"], low["objective.ibot_weight"]) == (1e-5, 0.5)
