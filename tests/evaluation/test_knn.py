"""k-NN's promises: scikit-learn's answer whatever the chunk, and a clear limit on k."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from essa_dist.errors import UsageError
from essa_dist.evaluation import knn
from essa_dist.evaluation.knn import knn_probabilities, nearest_neighbours, votes

N, M, C, K = 60, 23, 7, 4
T = 0.2  # not the default


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    bank, test = torch.randn(N, C, generator=random), torch.randn(M, C, generator=random)
    return bank, torch.randint(K, (N,), generator=random), test


def weigh(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp((1 - distance) / T)


@pytest.mark.parametrize("k", [1, 20, N])
@pytest.mark.parametrize("at_once", [1, 5 * N, 2**24])
def test_votes_equal_those_of_scikit_learn_in_any_chunk(
    features: tuple[torch.Tensor, ...], k: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, labels, test = features
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", at_once)
    found = knn_probabilities(bank, labels, test, num_classes=K, k=k, temperature=T)
    oracle = KNeighborsClassifier(k, metric="cosine", weights=weigh).fit(bank.double(), labels)
    np.testing.assert_allclose(found, oracle.predict_proba(test.double()), atol=1e-5)


def test_the_length_of_a_feature_does_not_matter(features: tuple[torch.Tensor, ...]) -> None:
    bank, labels, test = features
    stretched = bank * torch.linspace(0.1, 50, N)[:, None]
    found = knn_probabilities(stretched, labels, 7 * test, num_classes=K)
    torch.testing.assert_close(found, knn_probabilities(bank, labels, test, num_classes=K))


def test_a_near_minority_outvotes_a_far_majority() -> None:
    angles = torch.tensor([0.0, 0.9, 0.9, 0.9])
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = knn_probabilities(bank, torch.tensor([1, 0, 0, 0]), bank[:1], num_classes=2, k=4)
    assert found[0, 1] > 0.9


def test_a_tiny_temperature_leaves_the_nearest_neighbour_alone(features: tuple[torch.Tensor, ...]) -> None:
    bank, labels, test = features
    cold = knn_probabilities(bank, labels, test, num_classes=K, temperature=1e-4)
    nearest = knn_probabilities(bank, labels, test, num_classes=K, k=1)
    assert cold.isfinite().all()
    torch.testing.assert_close(cold.argmax(1), nearest.argmax(1))


def test_a_class_without_bank_members_gets_no_votes(features: tuple[torch.Tensor, ...]) -> None:
    bank, labels, test = features
    found = knn_probabilities(bank, labels, test, num_classes=K + 1)
    assert found.shape == (M, K + 1)
    assert found[:, K].eq(0).all()


@pytest.mark.parametrize("k", [0, N + 1])
def test_k_outside_the_bank_is_refused(features: tuple[torch.Tensor, ...], k: int) -> None:
    bank, labels, test = features
    with pytest.raises(UsageError, match=rf"k={k} is outside 1\.\.{N} \(the bank\)"):
        knn_probabilities(bank, labels, test, num_classes=K, k=k)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (10, 0.1), (30, 0.07), (30, 1.0)])
def test_one_pass_serves_every_smaller_k_and_any_temperature(
    features: tuple[torch.Tensor, ...], k: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, labels, test = features
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", 40)  # so the bank comes in two parts
    neighbours = nearest_neighbours(bank, test, k=30)
    found = votes(neighbours, labels, num_classes=K, k=k, temperature=temperature)
    alone = knn_probabilities(bank, labels, test, num_classes=K, k=k, temperature=temperature)
    torch.testing.assert_close(found, alone)


def test_of_several_labels_each_is_the_weighted_mean_of_what_neighbours_know(
    features: tuple[torch.Tensor, ...],
) -> None:
    bank, _, test = features
    random = np.random.default_rng(0)
    flags = random.choice([0, 1, -1], (N, 3), p=[0.5, 0.3, 0.2]).astype(np.float32)
    flags[:, 2] = -1
    flags[:4, 2] = [1, 0, 0, 0]  # so rare that most samples have no neighbour of whom it is known
    found = votes(
        nearest_neighbours(bank, test, k=6), torch.from_numpy(flags), num_classes=3, k=6, temperature=T
    )
    unit_bank, unit_test = (
        x.double().numpy() / x.double().norm(dim=1, keepdim=True).numpy() for x in (bank, test)
    )
    unknown = 0
    for m in range(M):
        similarity = unit_bank @ unit_test[m]
        nearest = np.argsort(-similarity)[:6]
        for label in range(3):
            known = [n for n in nearest if flags[n, label] >= 0]
            weights = [np.exp(similarity[n] / T) for n in known]
            expected = (
                np.average(flags[known, label], weights=weights)
                if known
                else flags[flags[:, label] >= 0, label].mean()
            )
            unknown += not known
            assert found[m, label] == pytest.approx(expected, abs=1e-5)
    assert unknown


def test_a_label_that_the_bank_knows_nothing_of_gets_zero(features: tuple[torch.Tensor, ...]) -> None:
    bank, _, test = features
    found = votes(
        nearest_neighbours(bank, test, k=3), torch.full((N, 1), -1.0), num_classes=1, k=3, temperature=T
    )
    assert found.eq(0).all()
