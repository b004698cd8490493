"""Yes/no questions: scikit-learn's values of what is known, and those of explicitly resampled images for counts."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor
from torchmetrics.functional import classification as torchmetrics

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics import Binary, MultiLabel

M, K = 230, 4
LABELS = ("effusion", "mass", "never", "always")


def findings(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities with ties, and a truth of which a fifth is not known."""
    random = np.random.default_rng(seed)
    truth_MK = (random.random((M, K)) < [0.3, 0.1, 0.0, 1.0]).astype(np.float32)
    p_MK = np.round(1 / (1 + np.exp(1 - random.normal(size=(M, K)) - 2 * truth_MK)), 2)
    truth_MK[random.random((M, K)) < 0.2] = -1
    return torch.from_numpy(p_MK), torch.from_numpy(truth_MK)


def test_values_are_scikit_learns_of_what_is_known() -> None:
    p_MK, truth_MK = findings()
    found = MultiLabel(p_MK, truth_MK, LABELS).score()
    known = [
        (p_MK[:, k][truth_MK[:, k] >= 0].numpy(), truth_MK[:, k][truth_MK[:, k] >= 0].numpy())
        for k in range(K)
    ]
    both = known[:2]
    expected = {
        "auroc": np.mean([sklearn.roc_auc_score(t, p) for p, t in both]),
        "auprc": np.mean([sklearn.average_precision_score(t, p) for p, t in both]),
        "f1_macro": np.mean([sklearn.f1_score(t, p >= 0.5) for p, t in known if t.any() or (p >= 0.5).any()]),
        "sensitivity": np.mean([sklearn.recall_score(t, p >= 0.5) for p, t in known if t.any()]),
        "specificity": np.mean([(p < 0.5)[t == 0].mean() for p, t in known if not t.all()]),
        "balanced_accuracy": np.mean([sklearn.balanced_accuracy_score(t, p >= 0.5) for p, t in both]),
        "accuracy": np.mean([sklearn.accuracy_score(t, p >= 0.5) for p, t in known]),
        "brier": np.mean([sklearn.brier_score_loss(t, p, pos_label=1) for p, t in known]),
        "nll": np.mean([sklearn.log_loss(t, p, labels=[0, 1]) for p, t in known]),
    }
    assert {name: found.values[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found.left_out == ("never", "always")
    assert found.confusion is None
    assert found.per_class["mass"]["n"] == (truth_MK[:, 1] == 1).sum()
    assert "auroc" not in found.per_class["never"]


def test_values_are_torchmetrics_with_unknown_ignored() -> None:
    p_MK, truth_MK = (x[:, :2] for x in findings())
    found, truth = MultiLabel(p_MK, truth_MK, LABELS[:2]).score().values, truth_MK.long()
    auroc = torchmetrics.multilabel_auroc(p_MK, truth, num_labels=2, ignore_index=-1)
    ece = np.mean(
        [
            torchmetrics.binary_calibration_error(p_MK[:, k], truth[:, k], n_bins=15, ignore_index=-1)
            for k in (0, 1)
        ]
    )
    assert found["auroc"] == pytest.approx(float(auroc), abs=1e-6)
    assert found["ece"] == pytest.approx(float(ece), abs=1e-6)


def test_counts_give_the_values_of_images_that_are_repeated_so_often() -> None:
    p_MK, truth_MK = findings()
    judged = MultiLabel(p_MK, truth_MK, LABELS)
    drawn = np.random.default_rng(1).integers(M, size=(6, M))
    found = judged(np.stack([np.bincount(rows, minlength=M) for rows in drawn], axis=1).astype(float))
    for r, rows in enumerate(drawn):
        again = MultiLabel(p_MK[rows], truth_MK[rows], LABELS)
        assert {name: value_R[r] for name, value_R in found.items()} == pytest.approx(
            again.values(), abs=1e-6
        )


def test_what_is_not_known_changes_nothing() -> None:
    p_MK, truth_MK = findings()
    other = torch.where(truth_MK < 0, 1 - p_MK, p_MK)
    one, two = (MultiLabel(p, truth_MK, LABELS).score(resamples=30) for p in (p_MK, other))
    assert one == two


def test_a_label_of_which_nothing_is_known_is_left_out() -> None:
    p_MK, truth_MK = findings()
    truth_MK[:, 1] = -1
    found = MultiLabel(p_MK, truth_MK, LABELS).score(resamples=20)
    assert found.left_out == ("mass", "never", "always")
    assert found.per_class["mass"] == {"n": 0}
    assert found.values["auroc"] == found.per_class["effusion"]["auroc"]
    assert all(math.isfinite(v) for v in [*found.values.values(), *sum(found.intervals.values(), ())])


def test_specificity_reached_exactly_counts_as_reached() -> None:
    p_M = torch.cat([torch.linspace(0, 1, 20), torch.tensor([0.97, 0.5])])  # 1 of 20 negatives above 0.97
    truth_M = torch.tensor([0] * 20 + [1, 1])
    found = Binary(p_M, truth_M, ("no", "yes"))
    assert found.score().values["sensitivity_at_95_specificity"] == 0.5
    assert found(np.ones((22, 1)))["sensitivity_at_95_specificity"] == 0.5


def test_binary_is_the_question_for_the_second_class() -> None:
    p_MK, truth_MK = findings()
    p_M, truth_M = p_MK[:, 0], truth_MK[:, 0].clamp_min(0).long()
    found = Binary(p_M, truth_M, ("healthy", "effusion")).score(resamples=10)
    guess = p_M >= 0.5
    assert found.values["f1"] == pytest.approx(sklearn.f1_score(truth_M, guess), abs=1e-9)
    assert "f1_macro" not in found.values
    assert found.intervals.keys() == found.values.keys()
    assert found.confusion == sklearn.confusion_matrix(truth_M, guess).tolist()
    assert found.values["auroc"] == pytest.approx(sklearn.roc_auc_score(truth_M, p_M), abs=1e-6)
    assert list(found.per_class) == ["effusion"]


def test_labels_that_are_soft_or_unknown_where_they_must_not_be_are_refused() -> None:
    p_MK, truth_MK = findings()
    with pytest.raises(UsageError, match=r"the first 0\.5, are outside -1\.\.1"):
        MultiLabel(p_MK, truth_MK.clamp_min(0.5), LABELS)
    with pytest.raises(UsageError, match=r"the first -1, are outside 0\.\.1"):
        Binary(p_MK[:, 0], truth_MK[:, 0].long(), ("no", "yes"))
