"""Each loss against the formula written as loops."""

import math

import pytest
import torch
from torch import Tensor

from essa_dist.losses.centering import (
    CENTER_MOMENTUM,
    SoftmaxCentering,
    balanced,
    column_sums,
    sinkhorn_knopp,
)
from essa_dist.losses.cross_entropy import dino_loss, ibot_loss
from essa_dist.losses.koleo import koleo_and_gradient, koleo_loss

S, T, B, K, M = 4, 2, 3, 7, 5


def probabilities(*shape: int) -> Tensor:
    return torch.softmax(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("same_crops", [False, True])
def test_dino_is_the_sum_over_pairs_of_different_crops(same_crops: bool) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(T if same_crops else S, B, K), probabilities(T, B, K)
    expected = 0.0
    for s, logits_BK in enumerate(student):
        for t, targets_BK in enumerate(teacher):
            if same_crops and s == t:
                continue
            for logits, target in zip(logits_BK, targets_BK, strict=True):
                expected -= (target * torch.log_softmax(logits / 0.1, 0)).sum().item() / B
    assert dino_loss(student, teacher, temp=0.1, same_crops=same_crops).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_ibot_counts_every_image_once_however_much_of_it_is_masked() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(M, K), probabilities(M, K)
    of_image = [4, 4, 4, 4, 1]  # one image with four masked patches, another with one
    expected = 0.0
    for logits, target, masked in zip(student, teacher, of_image, strict=True):
        expected -= (target * torch.log_softmax(logits / 0.1, 0)).sum().item() / masked
    weights = 1 / torch.tensor(of_image, dtype=torch.float32)
    found = ibot_loss(student, teacher, weights, temp=0.1, n_images=6)
    assert found.item() == pytest.approx(expected / 6, rel=1e-5)


def test_ibot_of_no_masked_patch_is_zero_and_has_a_gradient() -> None:
    student = torch.randn(0, K, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, K), torch.zeros(0), temp=0.1, n_images=6)
    loss.backward()
    assert loss.item() == 0.0


def test_koleo_is_the_log_distance_to_the_nearest_neighbour() -> None:
    torch.manual_seed(0)
    x = torch.randn(B, K)
    unit = [row / row.norm() for row in x]
    nearest = [min((a - b).norm().item() for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    expected = -sum(math.log(d) for d in nearest) / B
    assert koleo_loss(x).item() == pytest.approx(expected, rel=1e-4)


def test_koleo_of_equal_features_is_finite_also_in_half_precision() -> None:
    x = torch.ones(4, 8, dtype=torch.float16, requires_grad=True)
    loss = koleo_loss(x)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_images_that_are_the_same_do_not_drown_the_gradient_of_others_in_koleo() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 384)
    x[1:4] = x[0]
    x.requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    assert x.grad is not None
    assert not x.grad[1:4].any()  # the first may be a neighbour of others
    assert x.grad.norm(dim=1).max() < 1  # 1 / distance would be 5e6
    assert x.grad[4:].norm(dim=1).min() > 1e-3
    assert 0 < loss.item() < 20


def test_koleo_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 2, got 1"):
        koleo_loss(torch.randn(1, 8))


def test_sinkhorn_uses_every_prototype_equally_and_every_row_sums_to_one() -> None:
    torch.manual_seed(0)
    q = sinkhorn_knopp(torch.randn(64, K), temp=1.0, iterations=100)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(q.sum(dim=0), torch.full((K,), 64 / K), rtol=1e-3, atol=1e-3)


def test_sinkhorn_survives_logits_that_overflow_exp() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, K)
    high = sinkhorn_knopp(logits * 10 + 1e4, temp=0.04)
    assert high.isfinite().all()
    torch.testing.assert_close(sinkhorn_knopp(logits + 3, temp=0.04), sinkhorn_knopp(logits, temp=0.04))


def test_sinkhorn_of_no_rows_is_empty() -> None:
    assert sinkhorn_knopp(torch.zeros(0, K), temp=0.04).shape == (0, K)


def test_the_centre_moves_once_an_update_by_the_mean_of_all_rows() -> None:
    torch.manual_seed(0)
    centering, logits = SoftmaxCentering(K), torch.randn(6, K)
    centering.center += 1
    for part in (logits[:4], logits[4:]):  # of unequal sizes: rows count, not calls
        targets = centering(part, temp=0.04)
        torch.testing.assert_close(targets, torch.softmax((part - 1) / 0.04, dim=-1))
    centering.settle(applied=True)
    moved = CENTER_MOMENTUM + (1 - CENTER_MOMENTUM) * logits.mean(dim=0)
    torch.testing.assert_close(centering.center, moved)
    centering.settle(applied=True)  # nothing was seen since
    torch.testing.assert_close(centering.center, moved)


def test_the_centre_stays_where_there_was_no_row_or_no_update() -> None:
    centering = SoftmaxCentering(K)
    centering.center += 1
    centering(torch.zeros(0, K), temp=0.04)
    centering.settle(applied=True)
    centering(torch.full((2, K), torch.nan), temp=0.04)
    centering.settle(applied=False)
    centering(torch.ones(3, K), temp=0.04)
    centering.settle(applied=True)
    torch.testing.assert_close(centering.center, torch.ones(K))


def sinkhorn_slowly(logits_NK: Tensor, temp: float) -> Tensor:
    q = (logits_NK.double() / temp).exp()
    for _ in range(3):
        q = q / q.sum(dim=0)
        q = q / q.sum(dim=1, keepdim=True)
    return q


@pytest.mark.parametrize("sizes", [[8], [5, 3], [3, 0, 5]])
def test_sinkhorn_in_pieces_is_sinkhorn_of_all_rows(sizes: list[int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, K)
    columns = column_sums(lambda: logits.split(sizes), temp=0.1)
    found = torch.cat([balanced(piece, columns, temp=0.1) for piece in logits.split(sizes)])
    torch.testing.assert_close(found.double(), sinkhorn_slowly(logits, 0.1), rtol=1e-4, atol=1e-6)


def test_the_gradient_of_koleo_is_autograds() -> None:
    torch.manual_seed(0)
    x = torch.randn(B, K, dtype=torch.float64).float().requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    with torch.no_grad():
        found, gradient = koleo_and_gradient(x)
    assert not found.requires_grad
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(gradient, x.grad)
