"""Retrieval's promises: scikit-learn's average precision, and neither the query nor its patient is found."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from essa_dist.errors import UsageError
from essa_dist.evaluation import retrieval
from essa_dist.evaluation.readings import Ranked
from essa_dist.evaluation.retrieval import retrieval_scores
from essa_dist.evaluation.samples import Samples

N, M, C, K = 40, 17, 4, 3
AT = (1, 3, 100)


@pytest.fixture
def sets() -> tuple[Samples, Samples]:
    random = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        Samples(
            torch.randn(n, C, generator=random),
            torch.randint(K, (n,), generator=random),
            torch.randint(12, (n,), generator=random),
        )
        for n in (N, M)
    )


def slowly(bank: Samples, test: Samples, m: int, shares: np.ndarray) -> list[float]:
    """map, recall@k, precision@k of one query; ``shares``: which bank members are relevant."""
    kept = np.ones(N, bool)
    if bank.patients is not None and test.patients is not None:
        kept &= (bank.patients != test.patients[m]).numpy()
    if bank.numbers is not None and test.numbers is not None:
        kept &= (bank.numbers != test.numbers[m]).numpy()
    cosine = torch.cosine_similarity(bank.features, test.features[m : m + 1]).numpy()[kept]
    relevant = shares[kept]
    if not relevant.any():
        return [np.nan] * (1 + 2 * len(AT))
    first = relevant[np.argsort(-cosine)]
    recall = [float(first[:k].any()) for k in AT]
    return [average_precision_score(relevant, cosine), *recall, *(first[:k].sum() / k for k in AT)]


@pytest.mark.parametrize("rows", [1, 5, 256])
@pytest.mark.parametrize("with_patients", [True, False])
def test_values_are_scikit_learns_without_the_querys_patient(
    sets: tuple[Samples, Samples], with_patients: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, test = sets if with_patients else (s._replace(patients=None) for s in sets)
    monkeypatch.setattr(retrieval, "ROWS_AT_ONCE", rows)
    found = torch.stack(list(retrieval_scores(bank, test, AT).values()), dim=1)
    for m in range(M):
        expected = slowly(bank, test, m, (bank.targets == test.targets[m]).numpy())
        np.testing.assert_allclose(found[m], expected, atol=1e-6)


def test_an_image_is_not_found_by_itself(sets: tuple[Samples, Samples]) -> None:
    bank = sets[0]._replace(patients=None, numbers=torch.arange(N))
    found = torch.stack(list(retrieval_scores(bank, bank, AT).values()), dim=1)
    for m in range(N):
        np.testing.assert_allclose(
            found[m], slowly(bank, bank, m, (bank.targets == bank.targets[m]).numpy()), atol=1e-6
        )
    unaware = retrieval_scores(bank._replace(numbers=None), bank, AT)
    assert unaware["recall_at_1"].eq(1).all()  # each by itself: what the test above would not forgive


def test_of_several_labels_one_in_common_is_enough(sets: tuple[Samples, Samples]) -> None:
    random = np.random.default_rng(0)
    bank, test = (
        s._replace(
            targets=torch.from_numpy(random.choice([0.0, 1.0, -1.0], (len(s.targets), K), p=[0.6, 0.3, 0.1]))
        )
        for s in sets
    )
    found = torch.stack(list(retrieval_scores(bank, test, AT).values()), dim=1)
    for m in range(M):
        shares = ((bank.targets == 1) & (test.targets[m] == 1)).any(dim=1).numpy()
        np.testing.assert_allclose(found[m], slowly(bank, test, m, shares), atol=1e-6)


def test_a_query_with_nothing_to_find_is_left_out_of_the_means(sets: tuple[Samples, Samples]) -> None:
    bank, test = sets
    bank = bank._replace(targets=torch.where(bank.targets == 2, 1, bank.targets))
    values = retrieval_scores(bank, test, (1,))
    reading = Ranked({}, tuple(values), torch.stack(list(values.values())), test.targets)
    found = reading.result(seed=0)
    known = test.targets != 2
    assert found["n_queries"] == int(known.sum()) < M
    assert found["map"] == pytest.approx(float(values["map"][known].mean()))
    assert found["interval"][0] < found["map"] < found["interval"][1]


def test_a_bank_in_which_no_query_finds_anything_is_refused(sets: tuple[Samples, Samples]) -> None:
    bank, test = sets
    values = retrieval_scores(bank._replace(targets=bank.targets + K), test, (1,))
    with pytest.raises(UsageError, match="nothing can be retrieved"):
        Ranked({}, tuple(values), torch.stack(list(values.values())), test.targets).result(seed=0)
