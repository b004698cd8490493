"""The metrics' promises: scikit-learn's values, and the bootstrap of resampled images."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from essa_dist.evaluation.metrics import bootstrap_interval, classification_metrics

K = 4


def labels_and_guesses(shares: list[float], n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    truth = random.choice(K, n, p=shares)
    guess = np.where(random.random(n) < 0.7, truth, random.integers(K, size=n))
    return torch.from_numpy(truth), torch.from_numpy(guess)


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.9, 0.05, 0.04, 0.01], [0.5, 0.0, 0.0, 0.5]])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_values_equal_scikit_learn_also_where_the_test_set_lacks_a_class(shares: list[float]) -> None:
    truth, guess = labels_and_guesses(shares)
    found = classification_metrics(guess, truth, num_classes=K)
    assert found.accuracy == pytest.approx(accuracy_score(truth, guess), abs=1e-12)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, guess), abs=1e-12)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth, guess, labels=range(K)))


def test_a_class_that_is_never_predicted_counts_as_zero_recall() -> None:
    found = classification_metrics(torch.tensor([0, 0, 0]), torch.tensor([0, 0, 2]), num_classes=3)
    assert found.balanced_accuracy == 0.5
    assert found.confusion == [[2, 0, 0], [0, 0, 0], [1, 0, 0]]


def resample_images(truth: NDArray[np.int64], guess: NDArray[np.int64], resamples: int) -> list[float]:
    random = np.random.default_rng(1)
    drawn = random.integers(len(truth), size=(resamples, len(truth)))
    return [float(balanced_accuracy_score(truth[rows], guess[rows])) for rows in drawn]


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.9, 0.05, 0.04, 0.01]])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_interval_is_that_of_resampled_images(shares: list[float]) -> None:
    truth, guess = labels_and_guesses(shares)
    confusion = confusion_matrix(truth, guess, labels=range(K))
    low, high = bootstrap_interval(confusion, resamples=4000)
    expected = np.quantile(resample_images(truth.numpy(), guess.numpy(), 2000), [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.015)  # of an interval 0.1 to 0.35 wide


def test_interval_is_repeatable_holds_the_estimate_and_narrows_with_more_images() -> None:
    small = np.array([[15, 5], [4, 16]])
    first, again = (bootstrap_interval(small, seed=3) for _ in range(2))
    assert first == again
    assert first[0] < 0.775 < first[1]
    wide, narrow = (high - low for low, high in (first, bootstrap_interval(100 * small, seed=3)))
    assert narrow == pytest.approx(wide / 10, rel=0.15)


def test_a_perfect_model_has_an_interval_of_no_width() -> None:
    assert bootstrap_interval(np.diag([5, 0, 7])) == (1.0, 1.0)
