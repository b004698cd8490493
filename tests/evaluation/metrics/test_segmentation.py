"""Metrics of masks beside slow obvious twins: loops over pixels and surfaces, torchmetrics, resampled images."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.segmentation import dice_score, mean_iou

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics.scores import Scores
from essa_dist.evaluation.metrics.segmentation import IGNORE, JudgedMasks, hausdorff95, mask_rows

K, M, H, W = 4, 7, 11, 16
CLASSES = ("background", "nucleus", "stroma", "vessel")


def score_rows(rows: dict[str, Tensor], classes: tuple[str, ...], **options: Any) -> Scores:
    return JudgedMasks(rows, classes).score(**options)


def blobs(seed: int) -> Tensor:
    """Masks [M, H, W] of rectangles; some images lack a class, none has a vessel but the first."""
    random = np.random.default_rng(seed)
    masks = np.zeros((M, H, W), dtype=np.uint8)
    for i in range(M):
        for label in (1, 2, 3):
            if random.random() < (0.75 if label < 3 else 0.2):
                top, left = random.integers(H - 4), random.integers(W - 5)
                masks[i, top : top + random.integers(1, 5), left : left + random.integers(1, 6)] = label
    return torch.from_numpy(masks)


def with_ignored(masks: Tensor) -> Tensor:
    hidden = torch.rand(masks.shape, generator=torch.Generator().manual_seed(5)) < 0.1
    return masks.masked_fill(hidden, IGNORE)


def surface(mask: Any) -> list[tuple[int, int]]:
    found = []
    for y, x in zip(*np.nonzero(mask), strict=True):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [0 <= a < mask.shape[0] and 0 <= b < mask.shape[1] and mask[a, b] for a, b in around]
        if not all(inside):
            found.append((y, x))
    return found


def slow_hd95(one: Any, other: Any) -> float:
    if not one.any() and not other.any():
        return math.nan
    if not one.any() or not other.any():
        return math.hypot(*one.shape)
    of_one, of_other = surface(one), surface(other)
    ways = [
        [min(math.dist(p, q) for q in to) for p in start]
        for start, to in ((of_one, of_other), (of_other, of_one))
    ]
    return max(float(np.percentile(way, 95)) for way in ways)


def slow_rows(predicted: Tensor, truth: Tensor) -> dict[str, list[list[float]]]:
    rows: dict[str, list[list[float]]] = {name: [] for name in ("intersection", "predicted", "truth", "hd95")}
    for p, t in zip(predicted.numpy(), truth.numpy(), strict=True):
        known = t != IGNORE
        masks = [((p == k) & known, (t == k) & known) for k in range(K)]
        rows["intersection"].append([float((a & b).sum()) for a, b in masks])
        rows["predicted"].append([float(a.sum()) for a, _ in masks])
        rows["truth"].append([float(b.sum()) for _, b in masks])
        rows["hd95"].append([math.nan, *(slow_hd95(a, b) for a, b in masks[1:])])
    return rows


@pytest.mark.parametrize("ignored", [False, True])
def test_rows_are_those_of_loops_over_pixels_and_surfaces(ignored: bool) -> None:
    truth, predicted = blobs(0), blobs(1)
    if ignored:
        truth = with_ignored(truth)
    found, expected = mask_rows(predicted, truth, K), slow_rows(predicted, truth)
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        np.testing.assert_allclose(rows.numpy(), expected[name], atol=1e-12, err_msg=name)
    assert found["hd95"].isnan().any()  # the case of two empty masks
    assert (found["hd95"] == math.hypot(H, W)).any()  # and of one


@pytest.mark.parametrize("seed", range(5))
def test_hd95_is_that_of_all_pairs_of_surface_pixels(seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = (random.random((13, 9)) < share for share in (0.5, 0.1))
    assert hausdorff95(one, other) == pytest.approx(slow_hd95(one, other), abs=1e-12)
    assert hausdorff95(other, one) == hausdorff95(one, other)


def test_hd95_can_be_measured_while_training_flushes_denormals() -> None:
    square = np.zeros((16, 16), dtype=bool)
    square[:14, :14] = True
    expected = hausdorff95(square, square.T[::-1])
    torch.set_flush_denormal(True)
    try:
        assert hausdorff95(square, square.T[::-1]) == expected > 0  # it crashed the process
    finally:
        torch.set_flush_denormal(False)


def test_hd95_of_known_figures() -> None:
    square = np.zeros((20, 30), dtype=bool)
    square[5:10, 5:10] = True
    assert hausdorff95(square, square) == 0
    assert hausdorff95(square, np.roll(square, 7, axis=1)) == pytest.approx(7, abs=0.5)
    assert math.isnan(hausdorff95(square & False, square & False))
    assert hausdorff95(square, square & False) == math.hypot(20, 30)


def test_values_are_torchmetrics_where_every_image_shows_every_class() -> None:
    random = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, K, (M, H, W), generator=random) for _ in range(2))
    predicted = torch.where(torch.rand(truth.shape, generator=random) < 0.6, truth, predicted)
    scores = score_rows(mask_rows(predicted, truth, K, hd95=False), CLASSES)
    options: dict[str, Any] = {"num_classes": K, "include_background": False, "input_format": "index"}
    dice = dice_score(predicted, truth, average="macro", **options).mean()
    assert scores.values["dice"] == pytest.approx(dice.item(), abs=1e-6)
    assert scores.values["iou"] == pytest.approx(
        mean_iou(predicted, truth, **options).mean().item(), abs=1e-6
    )
    flat = [x.reshape(1, M * H, W) for x in (predicted, truth)]
    pooled = dice_score(*flat, average="macro", **options).mean()
    assert scores.values["dice_pooled"] == pytest.approx(pooled.item(), abs=1e-6)
    assert scores.values["iou_pooled"] == pytest.approx(mean_iou(*flat, **options).mean().item(), abs=1e-6)
    assert scores.values["pixel_accuracy"] == pytest.approx((predicted == truth).double().mean().item())
    assert "hd95" not in scores.values


def test_means_leave_out_images_without_the_class_and_classes_without_an_image() -> None:
    truth = torch.zeros(3, 4, 6, dtype=torch.uint8)
    predicted = truth.clone()
    truth[0, :2], predicted[0, :2] = 1, 1  # right: Dice 1
    predicted[1, 0, 0] = 1  # false alarm: Dice 0; in the third image class 1 is rightly nowhere
    predicted[2, 3, 3] = 2  # no image shows class 2: it can't be judged
    scores = score_rows(mask_rows(predicted, truth, K), CLASSES)
    assert scores.values["dice"] == scores.per_class["nucleus"]["dice"] == 0.5
    assert scores.per_class["nucleus"]["hd95"] == math.hypot(4, 6) / 2
    assert scores.per_class["nucleus"]["n"] == 1
    assert scores.per_class["nucleus"]["dice_pooled"] == pytest.approx(24 / 25)
    assert scores.left_out == ("stroma", "vessel")
    assert scores.per_class["vessel"] == {"n": 0}
    assert scores.values["pixel_accuracy"] == pytest.approx(1 - 2 / 72)


def test_a_set_without_any_structure_has_no_dice_and_says_why() -> None:
    empty = torch.zeros(2, 4, 6, dtype=torch.uint8)
    scores = score_rows(mask_rows(empty, empty, 2), CLASSES[:2], resamples=20)
    assert scores.values == {"pixel_accuracy": 1.0}
    with pytest.raises(
        UsageError, match="dice can't be had from these 2 images: no image, or every one, shows nucleus"
    ):
        scores.value("dice")


def test_rows_of_parts_put_together_are_the_rows_of_the_whole() -> None:
    truth, predicted = with_ignored(blobs(0)), blobs(1)
    whole = mask_rows(predicted, truth, K)
    parts = [mask_rows(predicted[i], truth[i], K) for i in (slice(0, 3), slice(3, 4), slice(4, 7))]
    for name, rows in whole.items():
        joined = torch.cat([part[name] for part in parts])
        assert torch.equal(joined.nan_to_num(-1), rows.nan_to_num(-1))


def test_intervals_are_those_of_images_drawn_again() -> None:
    truth, predicted = blobs(0), blobs(0)
    predicted[:, 2:9, 3:9] = blobs(1)[:, 2:9, 3:9]
    rows = mask_rows(predicted, truth, K)
    scores = score_rows(rows, CLASSES, resamples=3000, seed=1)
    random, drawn = np.random.default_rng(7), []
    for _ in range(600):
        chosen = torch.from_numpy(random.integers(M, size=M))
        drawn.append(score_rows({name: r[chosen] for name, r in rows.items()}, CLASSES).values)
    for metric, (low, high) in scores.intervals.items():
        values = [one[metric] for one in drawn if metric in one]
        expected = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([low, high], expected, atol=0.12 * (expected[1] - expected[0]) + 1e-9)
        assert low <= scores.values[metric] <= high
    assert set(scores.intervals) == set(scores.values)
    assert score_rows(rows, CLASSES, resamples=50, seed=1) == score_rows(rows, CLASSES, resamples=50, seed=1)


def test_patients_are_drawn_whole() -> None:
    rows = mask_rows(blobs(1), blobs(0), K)
    one_patient = score_rows(rows, CLASSES, resamples=50, patients=np.zeros(M, dtype=int))
    low, high = one_patient.intervals["dice"]
    assert low == high == pytest.approx(one_patient.values["dice"])


def test_masks_that_do_not_fit_are_refused() -> None:
    truth = torch.zeros(2, 4, 6, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"\(2, 4, 5\) and true \(2, 4, 6\) differ in size"):
        mask_rows(truth[..., :5], truth, K)
    with pytest.raises(UsageError, match="value 9: class numbers go from 0 to 3, 255 is ignored"):
        mask_rows(truth, truth + 9, K)
    with pytest.raises(UsageError, match="at least one image"):
        score_rows(mask_rows(truth[:0], truth[:0], K), CLASSES)
