"""The page of a fine-tuned run: its scores, how it learnt, and the test images at which it erred."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from essa_dist.data.shards import open_packed
from essa_dist.report import errors_seen
from essa_dist.report.errors_seen import dice_of_images, worst_judged
from tests.finetune.conftest import Tuned, cells, findings, make_set, nuclei, tune
from tests.report.test_report_page import make

__all__ = ["cells", "findings", "make_set", "nuclei", "tune"]
Tune = Callable[..., Tuned]


def test_the_page_shows_scores_intervals_classes_curves_and_errors(cells: str, tune: Tune) -> None:
    tuned = tune("run", cells, "duration=3", "validation.every=1", "test.resamples=20", "optim.lr=2e-3")
    path = tuned.run / "evaluation" / "test.npz"
    rows = tuned.rows()
    rows["probabilities"][3] = (0.01, 0.01, 0.98) if rows["targets"][3] == 0 else (0.98, 0.01, 0.01)
    np.savez(path, **rows)
    page, made = make(tuned.run)
    test = tuned.result["test"]
    low, high = test["intervals"]["balanced_accuracy"]
    assert f"balanced_accuracy {test['values']['balanced_accuracy']:.3f} [{low:.3f}, {high:.3f}]" in page.text
    assert f"{test['per_class']['red']['auroc']:.3f}" in page.text
    assert f"after step {tuned.result['best_step']} of 3" in page.text
    assert {Path(p).name for p in made["pictures"]} >= {"confusion.png", "errors.png", "learning.png"}
    assert str(rows["keys"][3]) in page.text
    assert "0.980" in page.text
    assert made["missing"] == []
    assert all(image["alt"] for image in page.all("img"))


def test_masks_are_drawn_from_the_worst_to_the_best(nuclei: str, tune: Tune) -> None:
    tuned = tune("run", nuclei, "duration=2", "validation.every=2", "data.evaluation=native")
    page, made = make(tuned.run, n_images=3)
    assert "masks.png" in {Path(p).name for p in made["pictures"]}
    dice = sorted(dice_of_images(tuned.rows()))
    places = [page.text.index(f"{value:.3f}", page.text.index("The same images")) for value in dice]
    assert places == sorted(places)
    assert made["missing"] == []


def test_the_dice_of_an_image_is_the_mean_over_the_classes_it_or_its_prediction_shows() -> None:
    rows = {
        "intersection": np.array([[9.0, 2, 0], [9, 0, 0]]),
        "predicted": np.array([[9.0, 4, 1], [9, 0, 0]]),
        "truth": np.array([[9.0, 4, 0], [9, 0, 0]]),
    }
    assert dice_of_images(rows).tolist() == [(0.5 + 0) / 2, 1]


def test_the_most_certain_errors_come_first_and_unknown_labels_are_none(
    cells: str, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_packed(f"{cells}:test")
    monkeypatch.setattr(errors_seen, "images_of", lambda run: images)
    several = {
        "keys": np.array(images.keys[:3]),
        "classes": np.array(["x", "y"]),
        "probabilities": np.array([[0.9, 0.2], [0.3, 0.4], [0.99, 0.7]]),
        "targets": np.array([[1, 0], [1, 0], [-1, 0]]),
    }
    seen = worst_judged(Path("run"), several, 5)
    assert [(one.key, one.truth, one.said, one.share) for one in seen] == [
        (images.keys[1], "x", "no x", 0.7),
        (images.keys[2], "no y", "y", 0.7),
    ]
    one_each = several | {"targets": np.array([0, 0, 1])}
    seen = worst_judged(Path("run"), one_each, 1)
    assert [(one.key, one.truth, one.said, one.share) for one in seen] == [(images.keys[2], "y", "x", 0.99)]


def test_a_run_without_test_images_says_what_is_missing_and_one_moved_data_set_too(
    cells: str, tune: Tune
) -> None:
    short = ("duration=1", "validation.every=1")
    untested = tune("untested", cells, *short, "test.enabled=false")
    page, made = make(untested.run)
    assert any("scores of test images" in gap for gap in made["missing"])
    assert "essa finetune" in page.text
    assert "essa adapt" not in page.text
    tested = tune("tested", cells, *short)
    rows = tested.rows()
    np.savez(tested.run / "evaluation" / "test.npz", **rows | {"targets": (rows["targets"] + 1) % 3})
    config = tested.run / "config.yaml"
    config.write_text(config.read_text().replace(cells, "/gone"))
    assert any("no such folder: /gone" in gap for gap in make(tested.run)[1]["missing"])
