"""Promises about what is held out of the bank: whole patients, a share of every class, never all of it."""

import pytest
import torch

from essa_dist.errors import UsageError
from essa_dist.evaluation.holdout import hold_out
from essa_dist.evaluation.samples import Samples


def bank(labels: list[int], patients: list[int] | None = None) -> Samples:
    return Samples(
        torch.zeros(len(labels), 2),
        torch.tensor(labels),
        None if patients is None else torch.tensor(patients),
    )


def test_every_class_is_on_both_sides_in_its_share() -> None:
    learn, check = hold_out(bank([0] * 50 + [1] * 10 + [2] * 2), 0.2, seed=0)
    assert sorted([*learn.tolist(), *check.tolist()]) == list(range(62))
    assert [int(((check >= a) & (check < b)).sum()) for a, b in ((0, 50), (50, 60), (60, 62))] == [10, 2, 1]


def test_no_patient_is_on_both_sides() -> None:
    patients = [i // 3 for i in range(60)]
    learn, check = hold_out(bank([0, 0, 1] * 20, patients), 0.2, seed=1)
    of = torch.tensor(patients)
    assert not set(of[learn].tolist()) & set(of[check].tolist())
    assert 9 <= len(check) <= 15


def test_the_only_member_of_a_class_is_learnt_from() -> None:
    _, check = hold_out(bank([0, 0, 0, 0, 0, 1]), 0.2, seed=0)
    assert 5 not in check.tolist()


def test_where_an_image_may_have_several_classes_each_is_on_both_sides() -> None:
    flags = torch.zeros(40, 2)
    flags[:10, 0], flags[8:12, 1], flags[30:, 1] = 1, 1, -1
    learn, check = hold_out(Samples(torch.zeros(40, 2), flags), 0.25, seed=0)
    for label in (0, 1):
        assert (flags[learn, label] == 1).any()
        assert (flags[check, label] == 1).any()


def test_the_seed_chooses() -> None:
    one, again, other = (hold_out(bank([0, 1] * 40), 0.2, seed=s)[1].tolist() for s in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("patients", [None, [7, 7, 7, 7]])
def test_nothing_to_hold_out_is_said(patients: list[int] | None) -> None:
    labels = [0, 1] if patients is None else [0, 0, 1, 1]
    with pytest.raises(UsageError, match="needs at least 2 of a class"):
        hold_out(bank(labels, patients), 0.2, seed=0)
