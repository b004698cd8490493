"""Fractions and shots: in proportion, by patient, nested, and the same for the same seed."""

import itertools
import time
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from essa_dist.data.labelled.labels import Labels, labels_of, mask_pixels
from essa_dist.data.labelled.subset import choose_subset
from essa_dist.data.shards import PackedImages
from essa_dist.errors import UsageError

FRACTIONS = (0.01, 0.03, 0.1, 0.25, 0.5, 0.9)


class Set:
    """What is asked of a packed set, without images."""

    def __init__(self, n: int, patients: NDArray[np.int32] | None = None) -> None:
        self.n, self.patients = n, patients

    def __len__(self) -> int:
        return self.n


def choose(labels: Labels, patients: NDArray[np.int32] | None = None, **settings: Any) -> NDArray[np.int64]:
    return choose_subset(cast(PackedImages, Set(len(labels.known), patients)), labels, **settings)


def one_label(values: NDArray[np.int64], classes: int = 8) -> Labels:
    return Labels("single", tuple("abcdefgh"[:classes]), values >= 0, values.astype(np.int64))


def several(values: NDArray[np.generic]) -> Labels:
    names = tuple(f"c{i}" for i in range(values.shape[1]))
    return Labels("multi", names, (values >= 0).any(axis=1), values.astype(np.float32))


def skewed(n: int, seed: int) -> Labels:
    rng = np.random.default_rng(seed)
    return one_label(rng.choice(8, n, p=np.array([40, 25, 15, 10, 5, 3, 1.5, 0.5]) / 100))


def findings(n: int, seed: int) -> Labels:
    return several(np.random.default_rng(seed).random((n, 14)) < np.geomspace(0.01, 0.2, 14))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_fraction_of_single_labels_is_exact_and_in_proportion(fraction: float, seed: int) -> None:
    labels = skewed(2000, seed)
    chosen = choose(labels, fraction=fraction, seed=seed)
    assert len(chosen) == round(fraction * 2000)
    off = labels.counts(chosen) - fraction * labels.counts(np.arange(2000))
    assert np.abs(off).max() < 2  # by chance it would be up to 40


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_fraction_of_several_labels_is_in_proportion(fraction: float, seed: int) -> None:
    labels = findings(3000, seed)
    chosen = choose(labels, fraction=fraction, seed=seed)
    assert len(chosen) == round(fraction * 3000)
    assert np.abs(labels.counts(chosen) - fraction * labels.counts(np.arange(3000))).max() < 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_patients_are_whole_and_classes_still_in_proportion(fraction: float, seed: int) -> None:
    patients = np.random.default_rng(seed).integers(0, 600, 2000).astype(np.int32)
    labels = findings(2000, seed)
    chosen = choose(labels, patients, fraction=fraction, seed=seed)
    assert not set(patients[chosen]) & set(np.delete(patients, chosen))
    assert abs(len(chosen) - fraction * 2000) <= 5  # half of the largest patient
    assert np.abs(labels.counts(chosen) - fraction * labels.counts(np.arange(2000))).max() < 5


@pytest.mark.parametrize("kind", ["single", "multi", "patients"])
def test_smaller_fractions_are_inside_larger_ones_of_the_same_seed(kind: str) -> None:
    labels = skewed(700, 1) if kind == "single" else findings(700, 1)
    patients = np.random.default_rng(1).integers(0, 200, 700).astype(np.int32) if kind == "patients" else None
    chain = [set(choose(labels, patients, fraction=f / 100, seed=3).tolist()) for f in range(4, 101, 3)]
    assert all(small <= large for small, large in itertools.pairwise(chain))
    assert len(chain[-1]) == 700


def test_the_seed_chooses_and_repeats() -> None:
    labels = skewed(500, 0)
    one, again, other = (choose(labels, fraction=0.1, seed=seed) for seed in (1, 1, 2))
    assert one.tolist() == again.tolist() == sorted(one.tolist())
    assert one.tolist() != other.tolist()


def test_every_sample_has_its_chance() -> None:
    labels = skewed(60, 0)
    often = np.bincount(
        np.concatenate([choose(labels, fraction=0.5, seed=seed) for seed in range(200)]), minlength=60
    )
    common = often[labels.values < 4]
    assert common.min() > 60  # of 200, 100 expected, standard deviation 7
    assert common.max() < 140


def test_each_class_has_a_sample_even_where_that_is_more_than_the_fraction(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = one_label(np.repeat(np.arange(8), 20))
    chosen = choose(labels, fraction=0.01)
    assert sorted(labels.values[chosen].tolist()) == list(range(8))
    assert "fraction=0.01 of 160 samples is 2; 8 are taken" in caplog.text
    rare = several(np.eye(3)[np.repeat([0, 1, 2, 2], [3, 2, 200, 295])])
    assert (rare.counts(choose(rare, fraction=0.01)) > 0).all()


def test_samples_without_a_label_are_never_chosen(caplog: pytest.LogCaptureFixture) -> None:
    labels = one_label(np.array([0, -1, 1, 0, -1, 1, 0, 1]), 2)
    assert choose(labels).tolist() == [0, 2, 3, 5, 6, 7]
    assert "2 of 8 samples have no label and are left out" in caplog.text
    assert set(choose(labels, fraction=0.5).tolist()) <= {0, 2, 3, 5, 6, 7}
    assert set(choose(labels, shots=1).tolist()) <= {0, 2, 3, 5, 6, 7}


def test_small_odd_sets_come_to_an_end_with_the_right_size() -> None:
    for seed in range(150):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 40))
        labels = several(rng.random((n, 6)) < rng.random(6))
        patients = rng.integers(0, n, n).astype(np.int32) if seed % 2 else None
        for fraction in (0.1, 0.5, 0.8):
            try:
                chosen = choose(labels, patients, fraction=fraction, seed=seed)
            except UsageError:
                continue
            present = labels.counts(np.arange(n)) > 0
            assert ((labels.counts(chosen) > 0) == present).all()


def test_shots_are_so_many_of_each_class_and_nested(caplog: pytest.LogCaptureFixture) -> None:
    labels = one_label(np.repeat(np.arange(4), [50, 30, 7, 3]), 4)
    chain = [choose(labels, shots=shots, seed=5) for shots in (1, 2, 5, 10)]
    assert [labels.counts(chosen).tolist() for chosen in chain] == [
        [1, 1, 1, 1],
        [2, 2, 2, 2],
        [5, 5, 5, 3],
        [10, 10, 7, 3],
    ]
    assert all(set(small) <= set(large) for small, large in itertools.pairwise(chain))
    assert "2 of 4 classes have fewer than 10 samples: all are taken" in caplog.text


def test_shots_of_several_labels_reach_each_class_and_those_without_finding() -> None:
    labels = findings(3000, 2)
    for shots in (1, 4, 16):
        chosen = choose(labels, shots=shots)
        assert (labels.counts(chosen) >= shots).all()
        assert int((labels.values[chosen] == 0).all(axis=1).sum()) >= shots
        assert len(chosen) <= shots * 15


def test_shots_come_from_as_many_patients_as_there_are() -> None:
    labels = one_label(np.repeat([0, 1], 60), 2)
    patients = np.concatenate([np.arange(60) % 6, 10 + np.arange(60) % 3]).astype(np.int32)
    chosen = choose(labels, patients, shots=6)
    assert len(set(patients[chosen[chosen < 60]])) == 6
    assert np.bincount(patients[chosen[chosen >= 60]])[10:].tolist() == [2, 2, 2]


def test_masks_are_divided_by_the_classes_in_them(segmented: PackedImages) -> None:
    labels = labels_of(segmented, "mask")
    chosen = choose_subset(segmented, labels, fraction=0.5, seed=1)
    assert len(chosen) == 4
    assert labels.known[chosen].all()
    assert (mask_pixels(segmented, labels, chosen).sum(axis=0) > 0).all()
    assert choose_subset(segmented, labels).tolist() == np.flatnonzero(labels.known).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.5, "shots": 3}, "contradict each other"),
        ({"fraction": 0.01}, "1 of 90 labelled samples would be trained on, at least 2"),
        ({"shots": 1}, "1 of 90 labelled samples"),
    ],
)
def test_what_leaves_nothing_to_train_on_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(one_label(np.zeros(90), 1), **settings)


def test_a_hundred_thousand_samples_take_seconds() -> None:
    labels = findings(100_000, 0)
    begun = time.process_time()
    choose(labels, fraction=0.1)
    choose(labels, shots=100)
    assert time.process_time() - begun < 10  # 1 s here
