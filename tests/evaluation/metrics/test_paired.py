"""Paired tests: scipy's or a slow obvious twin's p, and what must hold for equal and for better models."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics import SingleLabel
from essa_dist.evaluation.metrics.paired import (
    auroc_covariance,
    delong,
    mcnemar,
    over_seeds,
    paired_bootstrap,
)

M = 90


def slow_delong(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of the AUROCs by comparing each positive with each negative."""
    kernel = [
        (s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive]) for s in scores
    ]
    of_positive, of_negative = (np.array([k.mean(axis=axis) for k in kernel]) for axis in (1, 0))
    return np.cov(of_positive) / positive.sum() + np.cov(of_negative) / (~positive).sum()


def ranked(gain: float, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    positive = random.random(M) < 0.4
    shared = random.normal(size=M) + positive
    return positive, (shared + gain * positive).round(1), (shared + random.normal(size=M) / 2).round(1)


def test_delong_is_that_of_all_pairs_also_with_ties() -> None:
    positive, one, other = ranked(0.3)
    aurocs, covariance = auroc_covariance(positive, np.stack([one, other]))
    np.testing.assert_allclose(aurocs, [roc_auc_score(positive, s) for s in (one, other)], atol=1e-12)
    expected = slow_delong(positive, np.stack([one, other]))
    np.testing.assert_allclose(covariance, expected, atol=1e-12)
    found = delong(positive, one, other)
    deviation = math.sqrt(expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(aurocs[0] - aurocs[1]) / deviation))
    assert found.high - found.difference == pytest.approx(1.959964 * deviation, rel=1e-6)


def test_delong_of_models_that_rank_alike_finds_nothing() -> None:
    positive, one, _ = ranked(0)
    assert delong(positive, one, 3 * one + 1) == (0, 0, 0, 1)


def test_delong_rejects_equal_models_as_often_as_it_says() -> None:
    p = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        positive = np.arange(M) < 40
        shared = random.normal(size=M) + positive
        p.append(delong(positive, shared + random.normal(size=M), shared + random.normal(size=M)).p)
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_delong_needs_two_of_each() -> None:
    with pytest.raises(UsageError, match="these are 1 and 89"):
        delong(np.arange(M) == 0, np.zeros(M), np.ones(M))


def test_mcnemar_is_a_fair_coin_for_images_that_one_alone_gets_right() -> None:
    one = np.array([True] * 9 + [False] * 2 + [True] * 5)
    other = np.array([False] * 9 + [True] * 2 + [True] * 5)
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert mcnemar(one, other) == pytest.approx(by_hand)
    assert mcnemar(one, one) == 1
    with pytest.raises(UsageError, match="the same images"):
        mcnemar(one, other[:-1])


def model(strength: float, seed: int = 0) -> SingleLabel:
    random = np.random.default_rng(7)
    truth = random.integers(3, size=M)
    logits = random.normal(size=(M, 3)) + strength * np.eye(3)[truth]
    logits += np.random.default_rng(seed).normal(size=(M, 3)) / 10
    return SingleLabel(torch.from_numpy(logits).softmax(dim=1), torch.from_numpy(truth), "abc")


def test_paired_bootstrap_finds_a_better_model_and_nothing_between_equal_ones() -> None:
    weak, strong = model(0.5), model(1.5)
    found = paired_bootstrap(strong, weak, M, resamples=300)
    accuracy = found["accuracy"]
    assert accuracy.difference == pytest.approx(strong.values()["accuracy"] - weak.values()["accuracy"])
    assert 0 < accuracy.low < accuracy.difference < accuracy.high
    assert accuracy.p == pytest.approx(2 / 301)
    assert paired_bootstrap(weak, model(0.5), M, resamples=50)["auroc"] == (0, 0, 0, 1)
    back = paired_bootstrap(weak, strong, M, resamples=300)["accuracy"]
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-accuracy.difference, -accuracy.high, -accuracy.low)
    )


def test_pairing_narrows_the_interval() -> None:
    one, other = model(1.0, seed=1), model(1.0, seed=2)
    paired = paired_bootstrap(one, other, M, resamples=400)["auroc"]
    alone = one.score(resamples=400).intervals["auroc"]
    assert paired.high - paired.low < (alone[1] - alone[0]) / 2


def test_tests_over_seeds_are_scipys() -> None:
    one, other = [0.81, 0.85, 0.80, 0.88], [0.79, 0.80, 0.79, 0.80]
    found = over_seeds(one, other)
    gap = np.subtract(one, other)
    t = gap.mean() / (gap.std(ddof=1) / 2)
    assert found.difference == pytest.approx(gap.mean())
    assert found.t_p == pytest.approx(2 * stats.t.sf(t, df=3))
    assert found.wilcoxon_p == 2 / 2**4


def test_seeds_without_spread_give_no_p_rather_than_nan() -> None:
    assert over_seeds([0.8], [0.7]) == (pytest.approx(0.1), None, None)
    assert over_seeds([0.5, 0.75], [0.25, 0.5]) == (0.25, None, None)
    assert over_seeds([0.5, 0.75], [0.5, 0.75]) == (0, 1, 1)
    with pytest.raises(UsageError, match="the same seeds"):
        over_seeds([0.5, 0.6], [0.5])
