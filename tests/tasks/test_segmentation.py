"""Segmentation's promises: losses of a loop over pixels, exact micro-batches, scores of gathered rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from essa_dist.errors import DivergedError, UsageError
from essa_dist.tasks.interface import ClassCounts
from essa_dist.tasks.segmentation import IGNORE, Segmentation, SegmentationConfig

B, K, H, W = 4, 3, 5, 7
CLASSES = ("background", "nucleus", "vessel")
EVEN = ClassCounts((7, 7, 7), (21, 21, 21))
LOSSES = ["ce", "dice", "ce+dice"]


def task(counts: ClassCounts | None = None, **settings: Any) -> Segmentation:
    return Segmentation(SegmentationConfig(**settings), CLASSES, counts)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, K, (B, H, W), generator=random)
    targets[torch.rand(targets.shape, generator=random) < 0.2] = IGNORE
    targets[2] = targets[2].masked_fill(targets[2] == 2, 1)  # an image without the last class
    targets[3] = IGNORE  # and one of which nothing is known
    return torch.randn(B, K, H, W, generator=random), targets.to(torch.uint8)


def slow_loss(logits: Tensor, targets: Tensor, kind: str, weights: list[float]) -> float:
    total = 0.0
    for image in range(B):
        pixels = [(y, x) for y in range(H) for x in range(W) if targets[image, y, x] != IGNORE]
        p = {at: logits[image, :, at[0], at[1]].double().softmax(0).tolist() for at in pixels}
        t = {at: int(targets[image, at[0], at[1]]) for at in pixels}
        if "ce" in kind and pixels:
            total += sum(-weights[t[at]] * math.log(p[at][t[at]]) for at in pixels) / len(pixels)
        if "dice" in kind:
            ratios = []
            for k in range(1, K):
                both = sum(p[at][k] for at in pixels if t[at] == k)
                either = sum(p[at][k] for at in pixels) + sum(t[at] == k for at in pixels)
                ratios.append((2 * both + 1) / (either + 1))
            total += 1 - sum(ratios) / len(ratios)
    return total / B


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("weights", [None, (0.5, 1.5, 1.0)])
def test_loss_is_that_of_a_loop_over_pixels(kind: str, weights: tuple[float, ...] | None) -> None:
    logits, targets = batch()
    settings: Any = {} if weights is None else {"class_weights": weights}
    found = task(EVEN, loss=kind, **settings).loss(logits, targets).item()
    expected = slow_loss(logits, targets, kind, list(weights or (1, 1, 1)))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_micro_batches_average_to_the_batch_also_in_their_gradients(kind: str) -> None:
    logits, targets = batch()
    judge, gradients = task(loss=kind), []
    for parts in (1, 2, 4):
        x = logits.clone().requires_grad_()
        loss = torch.stack(
            [judge.loss(*part) for part in zip(x.chunk(parts), targets.chunk(parts), strict=True)]
        )
        (gradient,) = torch.autograd.grad(loss.mean(), x)
        gradients.append(torch.cat([gradient.flatten(), loss.mean().detach()[None]]))
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])


@pytest.mark.parametrize("kind", LOSSES)
def test_ignored_pixels_do_not_matter_and_get_no_gradient(kind: str) -> None:
    logits, targets = batch()
    hidden = (targets == IGNORE)[:, None].expand_as(logits)
    x = logits.clone().requires_grad_()
    loss = task(loss=kind).loss(x, targets)
    loss.backward()
    assert x.grad is not None
    assert not x.grad[hidden].any()
    assert x.grad[~hidden].all()
    assert torch.equal(task(loss=kind).loss(logits.masked_fill(hidden, 9.0), targets), loss.detach())


@pytest.mark.parametrize("kind", LOSSES)
def test_the_right_answer_has_nearly_no_loss_and_bf16_is_computed_in_fp32(kind: str) -> None:
    _, targets = batch()
    right = torch.nn.functional.one_hot(targets.long() % IGNORE, K).movedim(-1, 1) * 20.0
    judge = task(loss=kind)
    assert judge.loss(right, targets) < 1e-4 < judge.loss(-right, targets)
    loss = judge.loss(right.bfloat16(), targets)
    assert loss.dtype == judge.probabilities(right.bfloat16()).dtype == torch.float32
    assert loss == judge.loss(right, targets)


def test_balanced_weights_leave_each_class_the_same_share_of_the_loss() -> None:
    targets = torch.zeros(1, H, W, dtype=torch.uint8)
    targets[0, 0, :5], targets[0, 1, 0] = 1, 2
    counts = ClassCounts((29, 5, 1), (35,) * K)
    judge = task(counts, class_weights="balanced", loss="ce")
    assert judge.loss(torch.zeros(1, K, H, W), targets).item() == pytest.approx(math.log(K))  # of mean 1
    assert judge.weight_K * torch.tensor(counts.positive) == pytest.approx([35 / 3] * 3)
    given = task(counts, class_weights=(1, 4, 10), loss="ce")  # only their proportions matter
    assert (given.weight_K / given.weight_K[0]).tolist() == pytest.approx([1, 4, 10])
    assert (given.weight_K * torch.tensor(counts.positive)).sum().item() == pytest.approx(35)


def test_a_class_that_no_training_pixel_shows_breaks_nothing() -> None:
    judge = task(ClassCounts((30, 5, 0), (35, 35, 35)), class_weights="balanced")
    assert judge.weight_K.tolist() == pytest.approx([35 / 60, 3.5, 1])


def test_scores_of_gathered_rows_are_the_scores_of_the_whole() -> None:
    logits, targets = batch()
    judge = task()
    p = judge.probabilities(logits)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(B, H, W))
    rows = [judge.rows(p[i : i + 1], targets[i : i + 1]) for i in range(B)]
    gathered = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    whole = judge.score(p, targets, resamples=30, seed=2)
    assert judge.score_rows(gathered, resamples=30, seed=2) == whole
    assert judge.target_metric in whole.values
    assert whole.n == B
    assert set(whole.values) == {"dice", "iou", "hd95", "dice_pooled", "iou_pooled", "pixel_accuracy"}
    assert whole.as_dict()["per_class"].keys() == set(CLASSES)


def test_predictions_are_class_numbers_of_the_size_of_the_image() -> None:
    logits, _ = batch()
    predicted = task().predictions(task().probabilities(logits))
    assert predicted.dtype == torch.int64
    assert np.array_equal(predicted.numpy(), logits.numpy().argmax(axis=1))


def test_surfaces_are_measured_only_when_wanted() -> None:
    logits, targets = batch()
    judge = task(hd95=False, target_metric="iou_pooled")
    scores = judge.score(judge.probabilities(logits), targets)
    assert "hd95" not in scores.values
    assert judge.target_metric in scores.values


def test_what_can_not_be_judged_or_weighed_is_refused() -> None:
    logits, targets = batch()
    with pytest.raises(DivergedError, match="not finite"):
        task().score(logits.masked_fill(logits > 2, math.nan), targets)
    with pytest.raises(UsageError, match="segmentation of 1 classes"):
        Segmentation(SegmentationConfig(), ("background",))
    with pytest.raises(UsageError, match="class_weights needs labelled training images"):
        task(class_weights="balanced")
    with pytest.raises(UsageError, match=r"2 numbers for 3 classes \(background, nucleus, vessel\)"):
        task(EVEN, class_weights=(1.0, 2.0))
    with pytest.raises(ValidationError):
        task(loss="focal")
