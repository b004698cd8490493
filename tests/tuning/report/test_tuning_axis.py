"""Values of one parameter on a line: in order, apart, and with words that don't overlap."""

import itertools

import pytest

from essa_dist.tuning.report.axis import Axis
from essa_dist.tuning.report.values import settings, short_names
from tests.tuning.report.trials import trial


def test_words_stand_above_numbers_and_absence_below() -> None:
    line = Axis.of([16, 4, "full", None, 64], log=False)
    places = [line.place(value) for value in (None, 4, 16, 64, "full")]
    assert places == sorted(places)
    assert len(set(places)) == 5
    assert (places[0], places[-1]) == (0, 1)
    assert [word for _, word in line.ticks()] == ["none", "4", "16", "64", "full"]


@pytest.mark.parametrize("values", [[1e-5, 1e-4, 1e-3], [4, 16, 64]])
def test_equal_ratios_are_equal_distances_for_logarithms_and_for_chosen_powers(values: list[float]) -> None:
    line = Axis.of(values, log=isinstance(values[0], float))
    assert [line.place(value) for value in values] == pytest.approx([0, 0.5, 1])


def test_numbers_that_were_drawn_evenly_stay_even() -> None:
    values = [0.001 + 0.02 * i for i in range(20)]
    line = Axis.of(values, log=False)
    assert line.place(values[10]) == pytest.approx(10 / 19)


@pytest.mark.parametrize(
    "values",
    [
        [10**-x for x in (5, 4.5, 4.49, 3, 2.2, 2.21, 2.9, 1.7, 1.6)],
        [1, 2, 3, 100, 101],
        [*range(300), None, "full"],
        [0.5],
        [None, 3],
        ["a rather long name of an adapter", "lora", None],
        [True, False],
    ],
)
def test_ticks_are_within_the_line_and_apart(values: list[float | str | None]) -> None:
    for log in (False, True):
        ticks = Axis.of(values, log=log).ticks()
        places = [place for place, _ in ticks]
        assert min(places) >= 0
        assert max(places) <= 1
        assert all(b - a > 0.06 for a, b in itertools.pairwise(places))
        assert all(len(word) <= 14 for _, word in ticks)
        assert {word for _, word in ticks} >= ({"none"} if None in values else set())


def test_long_words_are_cut_where_they_still_differ() -> None:
    names = ["a_long_name_of_an_adapter_1", "a_long_name_of_an_adapter_2"]
    assert len({word for _, word in Axis.of(names, log=False).ticks()}) == 2


def test_whole_numbers_get_whole_ticks() -> None:
    assert all("." not in word for _, word in Axis.of(list(range(12)), log=False).ticks())


def test_short_names_stay_apart() -> None:
    names = ["adapter.kind", "adapter.rank", "ema.enabled", "a.lr", "b.lr"]
    assert list(short_names(names).values()) == ["adapter", "rank", "ema", "a.lr", "b.lr"]
    one = trial(0, params={"adapter.kind": "lora", "optim.lr": 3e-4, "on": True})
    assert (
        settings(one, ["adapter.kind", "adapter.rank", "optim.lr", "on"]) == "adapter=lora lr=0.0003 on=true"
    )
