"""The linear probe's promises: it learns, repeats itself, standardises, and copes with rare classes."""

import logging

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from essa_dist.errors import UsageError
from essa_dist.evaluation.linear import STRENGTHS, folds, linear_probabilities, patient_folds
from essa_dist.evaluation.samples import Samples

C, K = 6, 3


def clouds(members: list[int], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Gaussian clouds two standard deviations apart."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(members)), members)
    centres = 2.0 * np.eye(len(members), C)
    return (centres[labels] + random.standard_normal((len(labels), C))).astype(np.float32), labels


def linear_predictions(
    bank: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32]
) -> tuple[NDArray[np.int64], float]:
    """The most probable class of each sample, and the C."""
    samples = Samples(torch.from_numpy(bank), torch.from_numpy(labels))
    found, strength = linear_probabilities(samples, torch.from_numpy(test), num_classes=int(labels.max()) + 1)
    assert isinstance(strength, float)
    return found.argmax(dim=1).numpy(), strength


def test_it_is_scikit_learns_logistic_regression_at_the_c_it_chose() -> None:
    (bank, labels), (test, truth) = clouds([40] * K, seed=0), clouds([100] * K, seed=1)
    predicted, strength = linear_predictions(bank, labels, test)
    scaler = StandardScaler().fit(bank)
    oracle = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(bank), labels)
    np.testing.assert_array_equal(predicted, oracle.predict(scaler.transform(test)))
    assert strength in STRENGTHS
    assert (predicted == truth).mean() > 0.75


def test_a_strength_that_is_given_is_taken() -> None:
    (bank, labels), (test, _) = clouds([40] * K, seed=0), clouds([100] * K, seed=1)
    samples = Samples(torch.from_numpy(bank), torch.from_numpy(labels))
    given = {"num_classes": K, "strength": 0.003}
    found, strength = linear_probabilities(samples, torch.from_numpy(test), **given)
    scaler = StandardScaler().fit(bank)
    oracle = LogisticRegression(C=0.003, max_iter=1000).fit(scaler.transform(bank), labels)
    np.testing.assert_allclose(found.numpy(), oracle.predict_proba(scaler.transform(test)), atol=1e-3)
    assert strength == 0.003
    several = samples._replace(targets=torch.nn.functional.one_hot(samples.targets).float())
    assert linear_probabilities(several, torch.from_numpy(test), **given)[1] == [0.003] * K


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


def several(bank: NDArray[np.float32]) -> NDArray[np.float32]:
    """Three labels: the sign of a channel, of every third image not known; noise; one that only two images have."""
    flags = np.stack([bank[:, 0] > 1, np.arange(len(bank)) % 2 == 0, np.arange(len(bank)) < 2], axis=1)
    flags = flags.astype(np.float32)
    flags[::3, 0] = -1
    return flags


def test_of_several_labels_each_has_the_logistic_regression_of_what_is_known_of_it() -> None:
    (bank, _), (test, _) = clouds([40] * K, seed=0), clouds([40] * K, seed=1)
    flags = several(bank)
    samples = Samples(torch.from_numpy(bank), torch.from_numpy(flags))
    found, strengths = linear_probabilities(samples, torch.from_numpy(test), num_classes=3)
    assert isinstance(strengths, list)
    for label, strength in enumerate(strengths):
        known = flags[:, label] >= 0
        scaler = StandardScaler().fit(bank[known])
        oracle = LogisticRegression(C=strength, max_iter=1000)
        oracle.fit(scaler.transform(bank[known]), flags[known, label])
        np.testing.assert_allclose(
            found[:, label], oracle.predict_proba(scaler.transform(test))[:, 1], atol=1e-5
        )


def test_a_label_of_one_state_only_gets_its_share_and_all_of_them_are_refused() -> None:
    bank, _ = clouds([10] * K, seed=0)
    flags = several(bank)
    flags[:, 1], flags[:, 2] = 1, -1
    samples = Samples(torch.from_numpy(bank), torch.from_numpy(flags))
    found, strengths = linear_probabilities(samples, samples.features, num_classes=3)
    assert isinstance(strengths, list)
    assert found[:, 1].eq(1).all()
    assert found[:, 2].eq(0).all()
    assert strengths[1:] == [None, None]
    with pytest.raises(UsageError, match="in both states"):
        linear_probabilities(
            samples._replace(targets=samples.targets[:, 1:]), samples.features, num_classes=2
        )


def test_folds_of_patients_share_none_and_have_both_states_on_either_side() -> None:
    random = np.random.default_rng(0)
    patients, labels = np.repeat(np.arange(20), 3), (random.random(60) < 0.3).astype(np.int64)
    splits = patient_folds(labels, patients, seed=0)
    assert len(splits) >= 3
    for train, valid in splits:
        assert not set(patients[train]) & set(patients[valid])
        assert set(labels[train]) == set(labels[valid]) == {0, 1}
    assert patient_folds(labels, np.where(labels == 1, 0, patients + 1), seed=0) == []
