"""The canary's probe gives what a slow twin gives, and refuses a set that says nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from essa_dist import pack
from essa_dist.engine.recording.probe import STRENGTH, halves
from essa_dist.errors import UsageError
from tests.engine.recording.probing import SIZE, colours, probe


def test_the_value_is_that_of_a_slow_nearest_neighbour_search(labelled: str) -> None:
    of = probe(labelled)
    assert of.labels is not None
    features = torch.nn.functional.normalize(colours(of.pixels), dim=1).double().numpy()
    right: dict[int, list[bool]] = {}
    for i, label in enumerate(of.labels):
        near = sorted(
            (j for j in range(of.size) if of.half[j] != of.half[i]), key=lambda j: -features[i] @ features[j]
        )
        votes = np.zeros(3)
        for j in near[: of.k]:
            votes[of.labels[j]] += np.exp(features[i] @ features[j] / 0.07)
        right.setdefault(int(label), []).append(votes.argmax() == label)
    value = of.value(colours)
    assert value == pytest.approx(np.mean([np.mean(hits) for hits in right.values()]))
    assert 0.4 < value < 1


def test_the_linear_value_is_that_of_scikit_learn_on_either_half(labelled: str) -> None:
    of = probe(labelled, protocol="linear")
    features, predicted = colours(of.pixels).double().numpy(), np.empty(of.size, np.int64)
    for side in (0, 1):
        bank, asked = features[of.half == side], features[of.half != side]
        scaler = StandardScaler().fit(bank)
        fitted = LogisticRegression(C=STRENGTH, max_iter=1000).fit(
            scaler.transform(bank), of.labels[of.half == side]
        )
        predicted[of.half != side] = fitted.predict(scaler.transform(asked))
    value = of.value(colours)
    assert value == pytest.approx(balanced_accuracy_score(of.labels, predicted))
    assert 0.4 < value < 1
    assert (of.name, of.is_share) == ("canary_linear", True)
    assert of.value(colours) == value


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_features_that_are_not_finite_are_worth_chance(labelled: str, protocol: str) -> None:
    of = probe(labelled, protocol=protocol)
    assert of.value(lambda pixels: colours(pixels) * torch.nan) == pytest.approx(1 / 3)


def test_halves_keep_patients_together_and_classes_even() -> None:
    rng = np.random.default_rng(0)
    patients = np.sort(rng.integers(0, 60, 300)).astype(np.int32)
    labels = patients % 3
    half = halves(labels, patients)
    assert all(len(set(half[patients == p])) == 1 for p in set(patients))
    for label in range(3):
        assert abs(half[labels == label].mean() - 0.5) < 0.1
    alone = halves(labels, None)
    assert all(abs(int((alone[labels == x] * 2 - 1).sum())) <= 1 for x in range(3))


@pytest.mark.parametrize("asked", [{}, {"protocol": "rankme"}])
def test_without_labels_or_where_asked_the_value_is_the_rank_of_the_features(
    packed: str, labelled: str, asked: dict[str, Any]
) -> None:
    of = probe(labelled if asked else packed, **asked)
    singular = np.linalg.svd(colours(of.pixels).numpy().astype(np.float64), compute_uv=False)
    share = singular / singular.sum()
    assert of.value(colours) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert of.name == "canary_rankme"


def test_more_neighbours_than_images_trouble_only_those_who_ask_for_neighbours(labelled: str) -> None:
    with pytest.raises(UsageError, match="at most 1"):
        probe(labelled, k=30)
    assert probe(labelled, k=30, protocol="linear").value(colours) > 0.4


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_labels_are_needed_where_they_are_asked_for(packed: str, protocol: str) -> None:
    with pytest.raises(UsageError, match=f"protocol={protocol} needs one class for every image") as error:
        probe(packed, protocol=protocol)
    assert "canary.protocol=rankme" in str(error.value)


def packed_classes(root: Path, *counts: int) -> str:
    """A packed set with so many images of each class."""
    rng = np.random.default_rng(0)
    for label, count in enumerate(counts):
        folder = root / "images" / "abc"[label]
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    pack(str(root / "images"), out=str(root / "packed"))
    return str(root / "packed")


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_a_probe_of_one_class_is_refused(tmp_path: Path, protocol: str) -> None:
    with pytest.raises(UsageError, match="one class only"):
        probe(packed_classes(tmp_path, 6), protocol=protocol)


def test_a_linear_probe_is_refused_where_one_half_has_one_class(tmp_path: Path) -> None:
    ref = packed_classes(tmp_path, 7, 1)
    with pytest.raises(UsageError, match=r"one half shows one class only: .*canary\.protocol=knn"):
        probe(ref, protocol="linear")
    assert 0 <= probe(ref).value(colours) <= 1


def test_a_class_that_one_half_lacks_is_never_right_there_and_harms_nothing_else(tmp_path: Path) -> None:
    of = probe(packed_classes(tmp_path, 6, 6, 1), protocol="linear")
    assert 0 <= of.value(colours) <= 2 / 3
