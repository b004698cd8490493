"""What a space of settings promises, against slow oracles."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from essa_dist.tuning.space import Parameter, Space, applies, words

CONDITIONAL: dict[str, dict[str, Any]] = {
    "adapter.kind": {"choices": ["apla", "lora", "bitfit"]},
    "adapter.rank": {"choices": [2, 4, 8], "when": {"adapter.kind": ["apla", "lora"]}},
    "adapter.alpha": {
        "choices": [1.0, 16.0],
        "when": {"adapter.kind": ["lora"], "adapter.rank": [2, 8]},
    },
    "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True, "points": 3},
}


def space(told: dict[str, dict[str, Any]]) -> Space:
    return Space({name: Parameter(**one) for name, one in told.items()})


def test_a_parameter_has_a_value_only_where_its_condition_holds() -> None:
    made = space(CONDITIONAL)
    draws = [made.sample(0, number) for number in range(300)]
    for drawn in draws:
        ranked = drawn["adapter.kind"] in ("apla", "lora")
        assert ("adapter.rank" in drawn) == ranked
        assert ("adapter.alpha" in drawn) == (
            drawn["adapter.kind"] == "lora" and drawn["adapter.rank"] in (2, 8)
        )
        assert list(drawn) == [name for name in CONDITIONAL if name in drawn]
    assert {drawn["adapter.kind"] for drawn in draws} == {"apla", "lora", "bitfit"}
    assert any("adapter.alpha" in drawn for drawn in draws)


def test_the_logarithm_of_a_log_range_is_spread_evenly() -> None:
    parameter = Parameter(low=1e-5, high=1e-1, log=True)
    rng = np.random.default_rng(0)
    draws = [float(parameter.sample(rng)) for _ in range(4000)]
    assert min(draws) >= 1e-5 * (1 - 1e-12)
    assert max(draws) <= 1e-1 * (1 + 1e-12)
    counts = np.histogram(np.log10(draws), bins=4, range=(-5, -1))[0]
    assert (np.abs(counts - 1000) < 5 * math.sqrt(1000)).all()


@pytest.mark.parametrize(
    ("told", "allowed"),
    [
        ({"low": 0.0, "high": 1.0, "step": 0.25}, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ({"low": 0.1, "high": 0.75, "step": 0.2}, [0.1, 0.3, 0.5, 0.7]),
        ({"low": 0.1, "high": 0.7, "step": 0.1}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ({"low": 2, "high": 9, "step": 3, "integer": True}, [2, 5, 8]),
        ({"low": 3, "high": 6, "integer": True}, [3, 4, 5, 6]),
    ],
)
def test_a_stepped_range_gives_its_steps_and_nothing_else(told: dict[str, Any], allowed: list[float]) -> None:
    parameter = Parameter(**told)
    rng = np.random.default_rng(1)
    draws: list[Any] = [parameter.sample(rng) for _ in range(60 * len(allowed))]
    assert sorted(set(draws)) == allowed
    assert parameter.grid() == tuple(allowed)
    assert {type(value) for value in draws} == {int if told.get("integer") else float}
    for value in np.linspace(told["low"] - 1, told["high"] + 1, 37):
        nearest = parameter.clamp(float(value))
        assert nearest in allowed
        assert abs(nearest - value) == min(abs(one - value) for one in allowed)


def test_an_integer_range_by_its_logarithm_gives_whole_numbers_inside_it() -> None:
    parameter = Parameter(low=2, high=64, log=True, integer=True, points=6)
    rng = np.random.default_rng(2)
    draws: list[Any] = [parameter.sample(rng) for _ in range(2000)]
    assert all(isinstance(value, int) and 2 <= value <= 64 for value in draws)
    assert np.mean([value < 12 for value in draws]) == pytest.approx(0.5, abs=0.06)
    assert parameter.grid() == (2, 4, 8, 16, 32, 64)


def test_the_grid_of_a_range_is_spread_evenly_between_its_ends() -> None:
    assert Parameter(low=1.0, high=4.0).grid() == (1.0, 2.0, 3.0, 4.0)
    low, middle, high = Parameter(low=1e-4, high=1e-2, log=True, points=3).grid()
    assert (low, high) == (1e-4, 1e-2)
    assert middle == pytest.approx(1e-3)
    assert Parameter(low=1, high=100, integer=True, points=3).grid() == (1, 50, 100)


def test_the_same_seed_and_number_give_the_same_draw() -> None:
    draws = [space(CONDITIONAL).sample(7, number) for number in range(20)]
    made = space(CONDITIONAL)
    assert [made.sample(7, number) for number in reversed(range(20))] == draws[::-1]
    assert [made.sample(8, number) for number in range(20)] != draws
    assert len({drawn["optim.lr"] for drawn in draws}) == 20


def test_a_grid_visits_each_combination_once() -> None:
    names, parameters = list(CONDITIONAL), {name: Parameter(**one) for name, one in CONDITIONAL.items()}
    everything = []  # all values of all parameters, and then without those that don't apply
    for values in itertools.product(*(one.grid() for one in parameters.values())):
        whole = dict(zip(names, values, strict=True))
        drawn: dict[str, Any] = {}
        for name in names:
            if applies(parameters[name], drawn):
                drawn[name] = whole[name]
        if drawn not in everything:
            everything.append(drawn)
    found = list(Space(parameters).grid())
    assert len(found) == len(everything) == (3 + (1 + 2 * 2)) * 3 + 3
    assert all(drawn in everything for drawn in found)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"b": {"choices": [1], "when": {"a": [1]}}}, "b: when asks for a, which is not a parameter"),
        (
            {"b": {"choices": [1], "when": {"a": [1]}}, "a": {"choices": [1]}},
            "which is not a parameter named before it",
        ),
        (
            {"a": {"choices": ["x", "y"]}, "b": {"choices": [1], "when": {"a": ["z"]}}},
            "b: when asks for a=z, whose choices are x, y",
        ),
    ],
)
def test_a_condition_that_can_never_be_answered_is_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        space(told)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"low": 1.0},
        {"choices": [1, 2], "low": 1.0, "high": 2.0},
        {"choices": [1, 2], "log": True},
        {"low": 2.0, "high": 1.0},
        {"low": 0.0, "high": 1.0, "log": True},
        {"low": 1.0, "high": 2.0, "log": True, "step": 0.5},
        {"low": 1.5, "high": 3, "integer": True},
        {"low": 1, "high": 3, "integer": True, "step": 0.5},
    ],
)
def test_a_parameter_that_contradicts_itself_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"choices|range|log|integer"):
        Parameter(**told)


def test_words_name_kinds_first() -> None:
    drawn: dict[str, Any] = {"adapter.rank": 8, "optim.lr": 1e-3, "adapter.kind": "lora"}
    assert words(drawn) == ["adapter.kind=lora", "adapter.rank=8", "optim.lr=0.001"]


def test_one_setting_can_be_drawn_in_other_ways_where_other_things_hold() -> None:
    kinds = Parameter(choices=("apla", "lora"))
    apla = Parameter(choices=(8, "full"), when={"adapter.kind": ("apla",)})
    lora = Parameter(choices=(2, 4), when={"adapter.kind": ("lora",)})
    space = Space({"adapter.kind": kinds, "adapter.rank@apla": apla, "adapter.rank@lora": lora})
    expected = [("apla", 8), ("apla", "full"), ("lora", 2), ("lora", 4)]
    assert [(one["adapter.kind"], one["adapter.rank"]) for one in space.grid()] == expected
    seen = {tuple(space.sample(0, number).values()) for number in range(60)}
    assert seen == set(expected)


def test_two_parameters_that_give_one_setting_at_a_time_are_refused() -> None:
    with pytest.raises(ValueError, match="say when each of the two applies"):
        Space({"a@x": Parameter(choices=(1, 2)), "a@y": Parameter(choices=(3,))})
    whenever = Parameter(choices=(1,), when={"b": (1, 2)})
    both = Space({"b": Parameter(choices=(1, 2)), "a@x": whenever, "a@y": whenever})
    with pytest.raises(ValueError, match="another parameter that applies beside it gives a"):
        both.sample(0, 0)
