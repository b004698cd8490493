"""k-NN's promises: scikit-learn's answer whatever the chunk, and a clear limit on k."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from essa_dist.errors import UsageError
from essa_dist.evaluation import knn
from essa_dist.evaluation.knn import knn_probabilities

N, M, C, K = 60, 23, 7, 4
T = 0.2  # not the default


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    bank, test = torch.randn(N, C, generator=random), torch.randn(M, C, generator=random)
    return bank, torch.randint(K, (N,), generator=random), test


def votes(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp((1 - distance) / T)


@pytest.mark.parametrize("k", [1, 20, N])
@pytest.mark.parametrize("at_once", [1, 5 * N, 2**24])
def test_votes_equal_those_of_scikit_learn_in_any_chunk(
    features: tuple[torch.Tensor, ...], k: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, labels, test = features
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", at_once)
    found = knn_probabilities(bank, labels, test, num_classes=K, k=k, temperature=T)
    oracle = KNeighborsClassifier(k, metric="cosine", weights=votes).fit(bank.double(), labels)
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
