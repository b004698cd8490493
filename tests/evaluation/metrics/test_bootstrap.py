"""The bootstrap's promises: quantiles of scikit-learn's values of explicitly resampled images, or patients."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics import MultiLabel, bootstrap
from essa_dist.evaluation.metrics.bootstrap import draw, intervals, means, resampled

M, R = 150, 60


def scores() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    truth_M2 = random.random((M, 2)) < [0.3, 0.06]
    return random.normal(size=(M, 2)).round(1) / 10 + 0.5 + 0.1 * truth_M2, truth_M2


def judged() -> MultiLabel:
    p_M2, truth_M2 = scores()
    return MultiLabel(torch.from_numpy(p_M2), torch.from_numpy(truth_M2).float(), ("a", "b"))


@pytest.mark.parametrize("patients", [None, np.arange(M) // 3], ids=["images", "patients"])
def test_intervals_are_those_of_scikit_learn_on_the_resampled_images(patients: np.ndarray | None) -> None:
    p_M2, truth_M2 = scores()
    found = intervals(judged(), M, resamples=R, seed=5, groups=patients)
    counts_MR = np.concatenate(list(draw(M, R, seed=5, groups=patients)), axis=1).astype(int)
    for metric, function in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        values = []
        for counts_M in counts_MR.T:
            rows = np.repeat(np.arange(M), counts_M)
            values.append(
                np.mean(
                    [function(truth_M2[rows, k], p_M2[rows, k]) for k in range(2) if truth_M2[rows, k].any()]
                )
            )
        np.testing.assert_allclose(found[metric], np.quantile(values, [0.025, 0.975]), atol=1e-12)


def test_as_many_images_are_drawn_as_there_are_each_as_often_on_average() -> None:
    counts_MR = np.concatenate(list(draw(40, 3000, seed=1)), axis=1)
    assert (counts_MR.sum(axis=0) == 40).all()
    np.testing.assert_allclose(counts_MR.mean(axis=1), 1, atol=0.1)
    np.testing.assert_allclose(counts_MR.var(axis=1), 1 - 1 / 40, atol=0.2)  # binomial


def test_images_of_a_patient_are_drawn_together() -> None:
    patients = np.array([9, 4, 4, 9, 7, 4])
    (counts_MR,) = draw(6, 50, groups=patients)
    for patient in (4, 7, 9):
        of_patient = counts_MR[patients == patient]
        assert (of_patient == of_patient[0]).all()
    patients_drawn = counts_MR[0] + counts_MR[1] + counts_MR[4]
    assert (patients_drawn == 3).all()


def test_copies_of_an_image_narrow_the_interval_only_if_their_patient_is_not_known() -> None:
    values_M = np.random.default_rng(2).normal(size=80)
    patients = np.tile(np.arange(80), 4)
    width = {
        name: np.ptp(intervals(means({"x": np.tile(values_M, n)}), 80 * n, resamples=800, groups=groups)["x"])
        for name, n, groups in [("once", 1, None), ("copies", 4, None), ("patients", 4, patients)]
    }
    assert width["copies"] == pytest.approx(width["once"] / 2, rel=0.15)
    assert width["patients"] == pytest.approx(width["once"], rel=0.15)


def test_seed_decides_and_how_many_are_drawn_at_once_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resampled(judged(), M, resamples=R, seed=3)
    monkeypatch.setattr(bootstrap, "COUNTS_AT_ONCE", 7 * M)
    parts, other = (resampled(judged(), M, resamples=R, seed=seed) for seed in (3, 4))
    for metric, values_R in whole.items():
        np.testing.assert_array_equal(parts[metric], values_R)
    assert not np.array_equal(whole["auroc"], other["auroc"])


def test_resamples_that_have_lost_a_class_do_not_count() -> None:
    truth_M1 = torch.zeros(30, 1)
    truth_M1[0] = 1  # missing in a third of the resamples
    lone = MultiLabel(torch.linspace(0, 1, 30)[:, None], truth_M1, ("rare",))
    drawn_R = resampled(lone, 30, resamples=200)["auroc"]
    assert 30 < np.isnan(drawn_R).sum() < 110
    assert intervals(lone, 30, resamples=200)["auroc"] == (0.0, 0.0)


def test_means_of_images_leave_out_those_without_a_value() -> None:
    values_M = np.array([0.5, np.nan, 0.9])
    found = means({"dice": values_M})(np.array([[1.0, 0.0, 2.0], [1.0, 3.0, 1.0], [1.0, 0.0, 0.0]]))["dice"]
    np.testing.assert_allclose(found[[0, 2]], [0.7, 0.5])
    assert np.isnan(found[1])


def test_patients_of_other_images_are_refused() -> None:
    with pytest.raises(UsageError, match="4 patients for 3 images"):
        list(draw(3, 10, groups=np.arange(4)))
    with pytest.raises(UsageError, match="resamples=0"):
        list(draw(3, 0))
