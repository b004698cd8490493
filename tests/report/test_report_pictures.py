"""What the plots show: the right numbers, the right images, whatever the names."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from essa_dist.engine.recording.probe import CanaryProtocol
from essa_dist.report.bars import draw_bars, error_bar
from essa_dist.report.confusion import draw_confusion, has_confusion, recall_change, row_shares
from essa_dist.report.curves import CANARY, LOSSES, SCHEDULES, column, draw_panels, present, smooth
from essa_dist.report.pictures import attention_tops
from essa_dist.report.plotting import short
from essa_dist.report.record import Pair
from essa_dist.report.samples import SIDE, choose, square
from essa_dist.report.tables import headline, sentence


def not_blank(path: Path) -> bool:
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    return bool(pixels.std() > 5)


def labels(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([2, 0, 0, 1, 1, 2], 3, [1, 3, 0]),  # the first of each class
        ([2, 0, 0, 1, 1, 2], 5, [1, 3, 0, 2, 4]),  # then the second of each
        ([0, 1, 2, 3, 4, 5], 3, [1, 3, 5]),  # fewer than classes: spread over them
        ([0, 0], 6, [0, 1]),  # no more than there are
    ],
)
def test_images_of_distinct_classes_are_chosen_first(
    values: Sequence[int], count: int, expected: list[int]
) -> None:
    assert choose(labels(*values), len(values), count) == expected


def test_unlabelled_images_are_chosen_at_even_distances() -> None:
    assert choose(None, 100, 4) == [12, 37, 62, 87]


def test_a_square_is_the_centre_of_the_resized_image() -> None:
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[:, :, 10:20] = 200
    assert square(image).shape == (3, SIDE, SIDE)
    assert (square(image)[:, :, SIDE // 4 : 3 * SIDE // 4] == 200).all()


def test_both_maps_of_an_image_share_a_scale_of_their_own() -> None:
    before = np.stack([np.full((4, 4), 1.0), np.full((4, 4), 5.0)])
    after = np.stack([np.full((4, 4), 3.0), np.full((4, 4), 2.0)])
    assert attention_tops(before, after) == [3.0, 5.0]
    after[1, 0, 0] = 1000.0  # one patch of thirty-two
    assert attention_tops(before, after)[1] == 5.0


def test_an_interval_becomes_distances_from_the_bar_and_none_becomes_none() -> None:
    assert np.allclose(error_bar({"balanced_accuracy": 0.8, "interval": [0.7, 0.85]}), [[10.0], [5.0]])
    assert error_bar({"balanced_accuracy": 0.8, "interval": None}) == [[0.0], [0.0]]
    assert error_bar({"balanced_accuracy": 0.8}) == [[0.0], [0.0]]


def test_confusion_is_normalised_by_the_true_class() -> None:
    shares = row_shares({"confusion": [[3, 1], [0, 0]]})
    assert shares[0].tolist() == [0.75, 0.25]
    assert np.isnan(shares[1]).all()


def test_recall_change_is_in_points_of_the_true_class() -> None:
    pair = Pair({"confusion": [[1, 3], [0, 4]]}, {"confusion": [[2, 2], [1, 3]]})
    assert recall_change(pair).tolist() == [25.0, -25.0]


def test_matrices_over_different_classes_are_not_compared(fake: SimpleNamespace) -> None:
    before, after = fake.result("knn", 224, 0.7), fake.result("knn", 224, 0.8)
    assert has_confusion(Pair(before, after))
    assert not has_confusion(Pair(before, after | {"classes": ["x", "y", "z"]}))
    assert not has_confusion(Pair(before, {**after, "confusion": None}))


def test_smoothing_is_the_mean_of_the_window_and_steps_over_gaps() -> None:
    smoothed = smooth(np.array([1.0, 2.0, math.nan, 4.0, 6.0]), window=3)
    assert smoothed[1] == 1.5
    assert math.isnan(smoothed[2])
    assert smoothed[3] == 5.0


def test_null_and_absent_metrics_are_gaps() -> None:
    values = column([{"a": 1}, {"a": None}, {}, {"a": math.nan}], "a")
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()


def test_only_recorded_series_are_drawn_and_a_loss_of_weight_zero_is_not() -> None:
    rows = [{"step": 0, "loss": 1.0, "koleo": 0.0, "ibot": None, "dino_local": 2.0, "weight_decay": 0.0}]
    assert [list(panel.series) for panel in present(rows, LOSSES)] == [["loss"], ["dino_local"]]
    assert [list(panel.series) for panel in present(rows, SCHEDULES)] == [
        ["weight_decay"]
    ]  # there, 0 says something


@pytest.mark.parametrize("protocol", get_args(CanaryProtocol))
def test_every_protocol_of_the_canary_has_its_curves(protocol: str) -> None:
    name = f"canary_{protocol}"
    (panel,) = present([{"step": 2, name: 0.5, f"{name}_best": 0.75}], CANARY)
    assert set(panel.series) == {name, f"{name}_best"}


@pytest.mark.parametrize("steps", [1, 2, 200])
def test_curves_of_any_length_are_drawn(steps: int, fake: SimpleNamespace, tmp_path: Path) -> None:
    rows = fake.metrics(steps)
    draw_panels(rows, present(rows, LOSSES), tmp_path / "x.png", smoothed=True)
    assert not_blank(tmp_path / "x.png")


HOSTILE = ["<script>alert(1)</script>", "a$b^{$", "\\frac{", "x" * 300]


def test_class_names_are_drawn_as_text_and_never_as_formulas(fake: SimpleNamespace, tmp_path: Path) -> None:
    matrix = [[9, 1, 0, 0], [1, 8, 1, 0], [0, 0, 10, 0], [0, 0, 0, 0]]
    sides = [fake.result("$\\bad{", 224, v, classes=HOSTILE, confusion=matrix) for v in (0.7, 0.8)]
    draw_confusion(Pair(*sides), tmp_path / "confusion.png")
    draw_bars([Pair(*sides)], tmp_path / "bars.png")
    assert not_blank(tmp_path / "confusion.png")
    assert not_blank(tmp_path / "bars.png")


def test_a_plot_of_the_same_numbers_has_the_same_bytes(fake: SimpleNamespace, tmp_path: Path) -> None:
    pair = Pair(fake.result("knn", 224, 0.7), fake.result("knn", 224, 0.8))
    for name in ("a.png", "b.png"):
        draw_bars([pair], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_long_names_are_cut_to_one_short_line() -> None:
    assert short("a\nb") == "a b"
    assert short("x" * 40, 10) == "x" * 9 + "…"


def test_the_headline_is_the_whole_image_at_224_pixels(fake: SimpleNamespace) -> None:
    settings = [
        ("knn", 160, 1.0),
        ("knn", 224, 0.65),
        ("knn", 224, 1.0),
        ("linear", 98, 1.0),
        ("linear", 112, 1.0),
    ]
    pairs = [Pair(*(fake.result(name, size, 0.5, crop=crop),) * 2) for name, size, crop in settings]
    assert [pair.title for pair in headline(pairs)] == ["k-NN at 224 px", "linear probe at 98 px"]


def test_a_loss_of_accuracy_is_said_as_plainly_as_a_gain(fake: SimpleNamespace) -> None:
    pair = Pair(fake.result("knn", 224, 0.8), fake.result("knn", 224, 0.7))
    record = SimpleNamespace(summary={"steps": 3}, metrics=[], pairs=[pair])
    assert "from 80.0 % to 70.0 % by k-NN at 224 px (-10.0 points)" in sentence(record)
    assert "After 3 steps" in sentence(record)


def test_overlapping_intervals_are_said(fake: SimpleNamespace) -> None:
    for after, overlap in ((0.72, True), (0.9, False)):
        pair = Pair(fake.result("knn", 224, 0.7), fake.result("knn", 224, after))
        record = SimpleNamespace(summary={}, metrics=[], pairs=[pair])
        assert ("intervals overlap" in sentence(record)) == overlap
