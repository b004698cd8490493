"""One class for each image: scikit-learn's values, and those of explicitly resampled images for counts."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor

from essa_dist.errors import DivergedError, UsageError
from essa_dist.evaluation.metrics import SingleLabel
from essa_dist.evaluation.metrics.curves import CURVES

K, M = 5, 240
CLASSES = tuple("abcde")
GRADES = (2, 0, 1, 4, 3)


def predictions(shares: list[float], *, digits: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities with many ties, and the truth."""
    random = np.random.default_rng(seed)
    truth_M = random.choice(K, M, p=shares)
    logits_MK = random.normal(size=(M, K)) + 1.5 * np.eye(K)[truth_M]
    p_MK = np.round(np.exp(logits_MK) / np.exp(logits_MK).sum(axis=1, keepdims=True), digits)
    return torch.from_numpy(p_MK / p_MK.sum(axis=1, keepdims=True)), torch.from_numpy(truth_M)


EVEN, SKEWED, LACKING = [0.2] * 5, [0.8, 0.1, 0.05, 0.03, 0.02], [0.5, 0.0, 0.2, 0.3, 0.0]


def slow_sensitivity(truth_M: np.ndarray, p_M: np.ndarray, specificity: float) -> float:
    best = 0.0
    for threshold in [*np.unique(p_M), math.inf]:
        given = p_M >= threshold
        if (~given[~truth_M]).mean() >= specificity - 1e-9:
            best = max(best, given[truth_M].mean())
    return best


def slow_calibration_error(p_MK: np.ndarray, truth_M: np.ndarray) -> float:
    confidence_M, right_M = p_MK.max(axis=1), p_MK.argmax(axis=1) == truth_M
    error = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidence_M >= low) & ((confidence_M < high) | (high == 1))
        if inside.any():
            error += inside.mean() * abs(right_M[inside].mean() - confidence_M[inside].mean())
    return error


@pytest.mark.parametrize("shares", [EVEN, SKEWED, LACKING])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_values_are_scikit_learns_over_the_classes_that_images_show(shares: list[float]) -> None:
    p_MK, truth_M = predictions(shares)
    found = SingleLabel(p_MK, truth_M, CLASSES, grades=GRADES).score()
    p, t = p_MK.numpy(), truth_M.numpy()
    guess, shown = p.argmax(axis=1), np.unique(t)
    one_hot = np.eye(K, dtype=bool)[t]
    grade = np.array(GRADES)
    expected = {
        "accuracy": sklearn.accuracy_score(t, guess),
        "balanced_accuracy": sklearn.balanced_accuracy_score(t, guess),
        "f1_macro": sklearn.f1_score(t, guess, average="macro"),
        "auroc": np.mean([sklearn.roc_auc_score(one_hot[:, k], p[:, k]) for k in shown]),
        "auprc": np.mean([sklearn.average_precision_score(one_hot[:, k], p[:, k]) for k in shown]),
        "sensitivity_at_95_specificity": np.mean(
            [slow_sensitivity(one_hot[:, k], p[:, k], 0.95) for k in shown]
        ),
        "sensitivity_at_80_specificity": np.mean(
            [slow_sensitivity(one_hot[:, k], p[:, k], 0.8) for k in shown]
        ),
        "specificity": np.mean([(guess != k)[t != k].mean() for k in range(K)]),
        "quadratic_kappa": sklearn.cohen_kappa_score(grade[t], grade[guess], weights="quadratic"),
        "mae": sklearn.mean_absolute_error(grade[t], grade[guess]),
        "ece": slow_calibration_error(p, t),
        "brier": ((p - one_hot) ** 2).sum(axis=1).mean(),
        "nll": -np.log(np.maximum(p[np.arange(M), t], 1.1920929e-07)).mean(),
    }
    assert found.values == pytest.approx(expected, abs=1e-6)
    assert found.confusion == sklearn.confusion_matrix(t, guess, labels=range(K)).tolist()
    assert found.left_out == tuple(CLASSES[k] for k in range(K) if k not in shown)


@pytest.mark.parametrize("shares", [EVEN, SKEWED, LACKING])
def test_counts_give_the_values_of_images_that_are_repeated_so_often(shares: list[float]) -> None:
    p_MK, truth_M = predictions(shares)
    judged = SingleLabel(p_MK, truth_M, CLASSES, grades=GRADES)
    drawn = np.random.default_rng(1).integers(M, size=(6, M))
    counts_MR = np.stack([np.ones(M), *(np.bincount(rows, minlength=M) for rows in drawn)], axis=1)
    found = judged(counts_MR)
    for r, rows in enumerate([np.arange(M), *drawn]):
        again = SingleLabel(p_MK[rows], truth_M[rows], CLASSES, grades=GRADES)
        assert {name: value_R[r] for name, value_R in found.items()} == pytest.approx(
            again.values(), abs=1e-6
        )


def test_no_metric_is_nan_or_zero_for_want_of_images_and_all_is_json() -> None:
    p_MK, _ = predictions(EVEN)
    found = SingleLabel(p_MK, torch.full((M,), 3), CLASSES, grades=GRADES).score(resamples=20)
    assert not set(CURVES) & found.values.keys()
    assert found.left_out == CLASSES
    assert all(
        math.isfinite(value) for of in (found.values, *found.per_class.values()) for value in of.values()
    )
    assert found.intervals.keys() == found.values.keys()
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["n"] == M
    with pytest.raises(
        UsageError, match="auroc can't be had from these 240 images: no image, or every one, shows a, b"
    ):
        found.value("auroc")


def test_perfect_agreement_on_one_class_has_no_kappa() -> None:
    judged = SingleLabel(torch.eye(3)[[1, 1]], torch.tensor([1, 1]), "xyz", grades=(0, 1, 2))
    assert "quadratic_kappa" not in judged.score().values
    assert judged.score().values["mae"] == 0


def test_predicted_classes_may_be_others_than_the_most_probable() -> None:
    p_MK, truth_M = predictions(EVEN)
    assert SingleLabel(p_MK, truth_M, CLASSES, predicted_M=truth_M).score().values["accuracy"] == 1


@pytest.mark.parametrize(
    ("p", "truth", "words"),
    [
        (torch.ones(0, 2), torch.ones(0).long(), "no images"),
        (torch.ones(3, 2) / 2, torch.tensor([0, 1, 2]), "1 labels, the first 2, are outside 0..1"),
        (torch.ones(3, 2) / 2, torch.tensor([0, -1, -1]), "2 labels, the first -1"),
        (torch.ones(3, 5) / 5, torch.tensor([0, 1, 1]), "are not those of 3 images and 2 classes"),
    ],
)
def test_what_does_not_fit_is_refused(p: Tensor, truth: Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SingleLabel(p, truth, "ab")


def test_probabilities_that_are_not_finite_are_told() -> None:
    p_MK, truth_M = predictions(EVEN)
    p_MK[7, 2] = math.nan
    with pytest.raises(DivergedError, match="1 of 240 images are not finite"):
        SingleLabel(p_MK, truth_M, CLASSES)
