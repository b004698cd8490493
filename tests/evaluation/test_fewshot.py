"""Few-shot's promises: so many of each class, of as many patients as can be, and intervals that cover."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestCentroid

from essa_dist.evaluation.fewshot import draw_shots, fewshot_predictions, mean_and_interval, nearest_mean
from essa_dist.evaluation.readings import Drawn
from essa_dist.evaluation.samples import Samples

C, K = 5, 3


def clouds(n: int, seed: int) -> Samples:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % K
    return Samples(
        2 * torch.eye(K, C)[labels] + torch.randn(n, C, generator=random), labels, torch.arange(n) // 4
    )


def test_each_class_gives_so_many_and_a_small_one_all_it_has() -> None:
    bank = Samples(torch.zeros(13, C), torch.tensor([0] * 8 + [2] * 4 + [1]))
    rows = draw_shots(bank, 3, seed=0)
    assert bank.targets[rows].bincount().tolist() == [3, 1, 3]
    assert len(set(rows.tolist())) == 7


def test_shots_are_of_different_patients_as_long_as_there_are_any() -> None:
    patients = torch.tensor([0] * 20 + [1, 2])
    bank = Samples(torch.zeros(22, C), torch.zeros(22, dtype=torch.int64), patients)
    for seed in range(5):
        assert sorted(patients[draw_shots(bank, 3, seed=seed)].tolist()) == [0, 1, 2]
        assert sorted(patients[draw_shots(bank, 5, seed=seed)].tolist()) == [0, 0, 0, 1, 2]


def test_more_shots_hold_the_fewer_ones_and_seeds_differ() -> None:
    bank = clouds(90, seed=0)
    few, many, other = (
        set(draw_shots(bank, shots, seed=seed).tolist()) for shots, seed in ((2, 0), (5, 0), (5, 1))
    )
    assert few < many
    assert many != other


def test_the_nearest_mean_is_scikit_learns_nearest_centroid_of_unit_vectors() -> None:
    bank, test = clouds(30, seed=0), clouds(60, seed=1)
    unit_bank, unit_test = (torch.nn.functional.normalize(s.features, dim=1) for s in (bank, test))
    found = nearest_mean(unit_bank, bank.targets, unit_test)
    centroids = NearestCentroid().fit(unit_bank, bank.targets).centroids_
    cosine = unit_test.numpy() @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T
    np.testing.assert_array_equal(found, cosine.argmax(axis=1))


def test_both_methods_learn_and_a_missing_class_keeps_the_others_numbers() -> None:
    bank, test = clouds(90, seed=0), clouds(60, seed=1)
    bank = bank.take((bank.targets != 0).nonzero().flatten())
    found = fewshot_predictions(bank, test.features, shots=5, draws=3)
    for predicted in found.values():
        assert predicted.shape == (3, 60)
        assert set(predicted.unique().tolist()) == {1, 2}
        right = (predicted == test.targets)[:, test.targets != 0].float().mean()
        assert right > 0.7


def test_a_reading_is_the_mean_over_draws_of_scikit_learns_values() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, K, 50)
    draws = np.where(random.random((6, 50)) < 0.6, truth, random.integers(0, K, (6, 50)))
    reading = Drawn({"shots": 5}, ("a", "b", "c"), torch.from_numpy(draws), torch.from_numpy(truth))
    each = [balanced_accuracy_score(truth, draw) for draw in draws]
    found = reading.result(seed=0)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(each))
    assert found["std"] == pytest.approx(np.std(each, ddof=1))
    assert found["accuracy"] == pytest.approx((draws == truth).mean())
    whole = reading.statistic()(np.ones((50, 1)))
    assert whole["balanced_accuracy"][0] == pytest.approx(np.mean(each))


def test_the_interval_covers_the_mean_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(0)
    bounds = [mean_and_interval(random.normal(0.7, 0.1, 5))[2] for _ in range(2000)]
    assert np.mean([low < 0.7 < high for low, high in bounds]) == pytest.approx(0.95, abs=0.015)
    assert mean_and_interval(np.array([0.4])) == (0.4, 0.0, (0.4, 0.4))
