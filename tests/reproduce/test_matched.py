"""Differences over matched cells: their interval, their test, and what is said of them."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from essa_dist.reproduce.cells import Claim
from essa_dist.reproduce.claims import claim_words, judge_claim
from essa_dist.reproduce.matched import clustered, matched_test

GAPS = (0.03, -0.01, 0.05, 0.02, 0.04)


def cell(start: str, value: float, *, data: str = "a", seed: int = 0, adapter: str = "l") -> dict[str, Any]:
    facts = {"data": data, "model": "m", "fraction": 1.0, "start": start, "adapter": adapter}
    return facts | {"seed": seed, "unit": f"{data}/s{seed}", "value": value}


CLAIM = Claim("x beats y", "here", {"start": "x"}, {"start": "y"})


def judged(gaps: dict[tuple[str, int], float]) -> dict[str, Any]:
    """Of cells of ``(data set, seed)`` with these differences."""
    cells = [
        cell(start, 0.5 + gap * (start == "x"), data=data, seed=seed)
        for (data, seed), gap in gaps.items()
        for start in "xy"
    ]
    return judge_claim(CLAIM, cells, cells, cells)


def test_cells_that_are_units_of_their_own_have_the_interval_of_the_t_test() -> None:
    found = clustered(GAPS, range(len(GAPS)))
    assert found is not None
    judge = ttest_1samp(GAPS, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((judge.low, judge.high))
    assert found.difference == pytest.approx(np.mean(GAPS))


def test_p_counts_the_ways_to_turn_whole_units() -> None:
    units = ["a", "b", "a", "c", "b"]
    found = clustered(GAPS, units)
    assert found is not None
    totals = [sum(g for g, u in zip(GAPS, units, strict=True) if u == unit) for unit in "abc"]
    turned = [
        sum(s * total for s, total in zip(signs, totals, strict=True))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    assert found.p == sum(abs(one) >= sum(totals) - 1e-12 for one in turned) / len(turned)


def test_a_cell_seen_twice_is_no_second_proof() -> None:
    once, twice = clustered(GAPS, range(5)), clustered(GAPS * 2, [*range(5)] * 2)
    alone = clustered(GAPS * 2, range(10))
    assert once is not None
    assert twice is not None
    assert alone is not None
    assert twice == pytest.approx(once)
    assert alone.high - alone.low < once.high - once.low


def test_one_unit_shows_nothing() -> None:
    assert clustered([0.1, 0.2], ["a", "a"]) is None
    found = judged({("a", 0): 0.1})
    assert (found["shown"], found["interval"], found["p"], found["mean_difference"]) == (
        None,
        None,
        None,
        pytest.approx(0.1),
    )
    assert "not shown, for one set and seed" in claim_words(found)


def test_what_an_interval_with_zero_holds_is_not_shown_though_most_cells_agree() -> None:
    found = judged({("a", 0): 0.2, ("a", 1): 0.01, ("b", 0): 0.01, ("b", 1): -0.05})
    assert found["agree"] > found["compared"] / 2
    assert found["interval"][0] < 0 < found["interval"][1]
    assert found["shown"] == "no"
    assert "not shown, for the interval holds zero: +4.2 points over 4 matched cells" in claim_words(found)


@pytest.mark.parametrize(("sign", "shown"), [(1, "better"), (-1, "worse")])
def test_what_is_far_from_zero_is_shown_with_its_mean_in_each_set(sign: int, shown: str) -> None:
    gaps = {
        (data, seed): sign * (0.04 + 0.01 * (data == "b") + 0.002 * seed) for data in "ab" for seed in (0, 1)
    }
    found = judged(gaps)
    assert found["shown"] == shown
    assert found["by_set"]["a"]["mean_difference"] == pytest.approx(sign * 0.041)
    assert found["by_set"]["b"]["matched"] == 2
    assert f"(a {sign * 4.1:+.1f}, b {sign * 5.1:+.1f})" in claim_words(found)


def test_only_cells_of_one_seed_match() -> None:
    cells = [
        cell("x", 0.7, seed=0),
        cell("y", 0.5, seed=1),
        cell("x", 0.9, seed=1),
        cell("x", 1, adapter="f"),
    ]
    found = judge_claim(CLAIM, cells, cells, cells)
    assert (found["matched"], found["mean_difference"]) == (1, pytest.approx(0.4))
    assert matched_test([])["mean_difference"] is None
