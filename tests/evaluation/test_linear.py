"""The linear probe's promises: it learns, repeats itself, standardises, and copes with rare classes."""

import logging

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from essa_dist.errors import UsageError
from essa_dist.evaluation.linear import STRENGTHS, folds, linear_predictions

C, K = 6, 3


def clouds(members: list[int], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Gaussian clouds two standard deviations apart."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(members)), members)
    centres = 2.0 * np.eye(len(members), C)
    return (centres[labels] + random.standard_normal((len(labels), C))).astype(np.float32), labels


def test_it_is_scikit_learns_logistic_regression_at_the_c_it_chose() -> None:
    (bank, labels), (test, truth) = clouds([40] * K, seed=0), clouds([100] * K, seed=1)
    predicted, strength = linear_predictions(bank, labels, test)
    scaler = StandardScaler().fit(bank)
    oracle = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(bank), labels)
    np.testing.assert_array_equal(predicted, oracle.predict(scaler.transform(test)))
    assert strength in STRENGTHS
    assert (predicted == truth).mean() > 0.75


def test_units_of_the_features_do_not_matter() -> None:
    (bank, labels), (test, _) = clouds([20] * K, seed=0), clouds([20] * K, seed=1)
    scale = np.array([1, 10, 100, 1e3, 1e4, 1e-3], np.float32)
    plain, _ = linear_predictions(bank, labels, test)
    scaled, _ = linear_predictions(bank * scale + 5, labels, test * scale + 5)
    assert (plain == scaled).mean() > 0.98  # rounding of 1e-3 + 5 in fp32 may flip one at the border


def test_cross_validation_prefers_a_strong_penalty_for_noise_and_a_weak_one_for_signal() -> None:
    random = np.random.default_rng(0)
    bank, labels = clouds([30, 30], seed=0)
    bank[:, 0] = np.where(labels == 0, 1, -1) * (0.2 + random.random(60))  # separable by one feature
    _, separable = linear_predictions(bank, labels, bank)
    noise = random.standard_normal((60, 40)).astype(np.float32)
    _, hopeless = linear_predictions(noise, np.tile([0, 0, 1], 20), noise)
    assert hopeless < separable


def test_the_same_seed_gives_the_same_folds_and_another_seed_others() -> None:
    labels = np.repeat([0, 1, 2], 10)
    first, again, other = (np.concatenate([valid for _, valid in folds(labels, s)]) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("members", "expected"), [([9, 9, 9], 5), ([9, 3, 9], 3), ([9, 1, 9], 5), ([9, 1, 2], 2), ([2, 1, 1], 2)]
)
def test_folds_fit_the_smallest_class_and_a_lone_member_always_trains(
    members: list[int], expected: int
) -> None:
    labels = np.repeat([0, 1, 2], members)
    splits = folds(labels, seed=0)
    assert len(splits) == expected
    for train, valid in splits:
        assert set(train) | set(valid) == set(range(len(labels)))
        assert not set(train) & set(valid)
        assert set(labels[train]) == {0, 1, 2}
    assert len(np.concatenate([valid for _, valid in splits])) == sum(m for m in members if m > 1)


def test_class_indices_with_gaps_are_kept() -> None:
    bank, labels = clouds([10, 0, 0, 10, 1], seed=0)
    predicted, _ = linear_predictions(bank, labels, bank)
    assert set(predicted) <= {0, 3, 4}
    assert (predicted == labels).mean() > 0.8


def test_one_member_per_class_is_fitted_without_cross_validation(caplog: pytest.LogCaptureFixture) -> None:
    bank, labels = 10 * np.eye(3, C, dtype=np.float32), np.arange(3)
    with caplog.at_level(logging.WARNING):
        predicted, _ = linear_predictions(bank, labels, bank)
    assert predicted.tolist() == [0, 1, 2]
    assert "not cross-validated" in caplog.text


def test_a_bank_of_one_class_is_refused() -> None:
    bank, labels = clouds([5], seed=0)
    with pytest.raises(UsageError, match="needs at least 2"):
        linear_predictions(bank, labels, bank)
