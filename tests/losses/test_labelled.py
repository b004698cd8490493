"""Losses of labelled images: torch's and torchvision's values, and one term for each image."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import essa_dist._torchvision  # noqa: F401  (before torchvision)
from essa_dist.losses.labelled import binary_cross_entropy, continuation_ratios, cross_entropy

B, K = 6, 4


def logits(seed: int = 0) -> Tensor:
    return 2 * torch.randn(B, K, generator=torch.Generator().manual_seed(seed))


CLASSES = torch.tensor([0, 3, 1, 1, 2, 3])
SHARES = torch.rand(B, K, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
WEIGHTS = torch.tensor([0.5, 1.0, 3.0, 0.2])


@pytest.mark.parametrize("targets", [CLASSES, SHARES], ids=["classes", "shares"])
@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["alike", "weighted"])
def test_cross_entropy_is_torchs(targets: Tensor, weight: Tensor | None) -> None:
    found = cross_entropy(logits().log_softmax(dim=1), targets, weight_K=weight)
    expected = F.cross_entropy(logits(), targets, weight=weight, reduction="none")
    torch.testing.assert_close(found, expected)


def test_focal_cross_entropy_weighs_by_what_the_true_class_lacks() -> None:
    p_B = logits().softmax(dim=1)[torch.arange(B), CLASSES]
    found = cross_entropy(logits().log_softmax(dim=1), CLASSES, gamma=1.5)
    torch.testing.assert_close(found, -((1 - p_B) ** 1.5) * p_B.log())


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_binary_cross_entropy_is_torchvisions_focal_loss(gamma: float) -> None:
    from torchvision.ops import sigmoid_focal_loss

    targets = (SHARES > 0.25).float()
    expected = sigmoid_focal_loss(logits(), targets, alpha=-1, gamma=gamma).mean(dim=1)
    torch.testing.assert_close(binary_cross_entropy(logits(), targets, gamma=gamma), expected)


def test_binary_cross_entropy_takes_soft_targets_and_weights_as_torch() -> None:
    found = binary_cross_entropy(logits(), SHARES, positive_K=WEIGHTS)
    expected = F.binary_cross_entropy_with_logits(logits(), SHARES, pos_weight=WEIGHTS, reduction="none")
    torch.testing.assert_close(found, expected.mean(dim=1))
    flipped = binary_cross_entropy(-logits(), 1 - SHARES, negative_K=WEIGHTS)
    torch.testing.assert_close(flipped, found)


def test_each_image_is_the_mean_over_its_known_labels() -> None:
    targets = (SHARES > 0.25).float()
    targets[0, 1:], targets[2] = -1, -1
    x = logits().requires_grad_()
    found = binary_cross_entropy(x, targets, gamma=2.0)
    found.sum().backward()
    assert found[2] == 0
    assert x.grad is not None
    assert ((x.grad == 0) == (targets < 0)).all()
    alone = binary_cross_entropy(logits()[:1, :1], targets[:1, :1], gamma=2.0)
    torch.testing.assert_close(found[:1], alone)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_finite_where_probabilities_are_0_or_1(gamma: float) -> None:
    x = torch.tensor([[100.0, -100.0], [0.0, 90.0]], requires_grad=True)
    loss = cross_entropy(x.log_softmax(dim=1), torch.tensor([0, 0]), gamma=gamma).sum()
    loss = loss + binary_cross_entropy(x, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), gamma=gamma).sum()
    loss.backward()
    assert math.isfinite(loss.item())
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[1].abs().sum() > 0.5  # what is wrong still learns


def test_continuation_ratios_are_corns_probabilities() -> None:
    over = logits().sigmoid()
    found = continuation_ratios(logits()).exp()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(B))
    for image in range(B):
        at_least = [1.0, *over[image].cumprod(dim=0).tolist(), 0.0]
        expected = [at_least[k] - at_least[k + 1] for k in range(K + 1)]
        assert found[image].tolist() == pytest.approx(expected, abs=1e-6)


def test_their_cross_entropy_is_corns_sum_over_the_questions_that_an_image_answers() -> None:
    grades = torch.tensor([0, 4, 1, 2, 3, 3])
    found = cross_entropy(continuation_ratios(logits()), grades)
    for image, grade in enumerate(grades.tolist()):
        terms = [
            F.binary_cross_entropy_with_logits(logits()[image, k], torch.tensor(float(grade > k)))
            for k in range(K)
            if grade >= k
        ]
        torch.testing.assert_close(found[image], torch.stack(terms).sum())
