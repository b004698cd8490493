"""Divisions: by patient, even in every class, the same whatever the order of the files."""

import csv
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from essa_dist.errors import UsageError
from essa_dist.packing.source import Source
from essa_dist.packing.splits import assign_splits, check_patients, patient_numbers, side

THIRDS = {"train": 0.5, "val": 0.2, "test": 0.3}


def image(key: str, label: str | None = None, patient: str | None = None, split: str | None = None) -> Source:
    return Source(Path(f"{key}.png"), key, label, patient=patient, split=split)


def split_of(sources: Sequence[Source]) -> dict[str, str | None]:
    return {one.key: one.split for one in sources}


def test_every_class_is_divided_to_within_about_one_image_where_no_patients_are_known() -> None:
    for trial in range(60):
        rng = random.Random(trial)
        sizes = {f"c{i}": rng.randrange(8, 60) for i in range(rng.randrange(1, 8))}
        shares = [0.1 + rng.random() for _ in range(rng.choice([2, 3, 4]))]
        splits = {f"s{i}": share / sum(shares) for i, share in enumerate(shares)}
        sources = [image(f"{name}/{i}", name) for name, size in sizes.items() for i in range(size)]
        counts = Counter((one.label, one.split) for one in assign_splits(sources, splits, trial))
        off = [
            abs(counts[name, s] - size * part) for name, size in sizes.items() for s, part in splits.items()
        ]
        assert max(off) < 1.2


def test_round_fractions_are_met_exactly() -> None:
    sources = [image(f"a{i}", "a") for i in range(10)] + [image(f"b{i}", "b") for i in range(20)]
    counts = Counter((one.label, one.split) for one in assign_splits(sources, THIRDS, seed=3))
    assert counts == {
        ("a", "train"): 5,
        ("a", "val"): 2,
        ("a", "test"): 3,
        ("b", "train"): 10,
        ("b", "val"): 4,
        ("b", "test"): 6,
    }


def test_no_patient_is_parted_whatever_the_sizes() -> None:
    rng = random.Random(1)
    sources = [
        image(f"{patient}/{i}", rng.choice("ab"), f"p{patient}")
        for patient in range(80)
        for i in range(rng.choice([1, 1, 2, 9]))
    ]
    divided = assign_splits(sources, THIRDS, seed=0)
    assert check_patients(divided) == []
    assert len(divided) == len(sources)
    counts = Counter(one.split for one in divided)
    assert all(abs(counts[split] - share * len(sources)) <= 4 for split, share in THIRDS.items())


def test_large_patients_do_not_gather_in_one_split() -> None:
    sources = [image(f"{p}/{i}", "a", f"p{p}") for p in range(300) for i in range(1 + 4 * (p % 3 == 0))]
    divided = assign_splits(sources, THIRDS, seed=0)
    for split in THIRDS:
        sizes = Counter(one.patient for one in divided if one.split == split)
        assert np.mean(list(sizes.values())) == pytest.approx(len(sources) / 300, rel=0.05)


def test_nothing_depends_on_the_order_of_the_files_and_the_seed_matters() -> None:
    sources = [image(f"{i}", "ab"[i % 2], f"p{i // 3}" if i % 5 else None) for i in range(90)]
    divided = assign_splits(sources, THIRDS, seed=0)
    shuffled = random.Random(0).sample(sources, k=len(sources))
    assert assign_splits(shuffled, THIRDS, seed=0) == divided
    assert split_of(assign_splits(sources, THIRDS, seed=1)) != split_of(divided)


def test_storage_goes_split_by_split_and_is_shuffled_inside() -> None:
    divided = assign_splits([image(f"{i:02}", "ab"[i // 30]) for i in range(60)], THIRDS, seed=0)
    assert [one.split for one in divided] == sorted(str(one.split) for one in divided)
    labels = [one.label for one in divided if one.split == "train"]
    assert sum(a != b for a, b in itertools.pairwise(labels)) > 5


def test_given_splits_stay_and_the_rest_of_their_patients_follows() -> None:
    sources = [image("a", "x", "p", "test"), image("b", "x", "p"), image("c", "x", None, "holdout")]
    sources += [image(f"d{i}", "x") for i in range(10)]
    assigned = split_of(assign_splits(sources, {"train": 0.5, "test": 0.5}, seed=0))
    assert (assigned["a"], assigned["b"], assigned["c"]) == ("test", "test", "holdout")
    assert Counter(assigned[f"d{i}"] for i in range(10)) == {"train": 5, "test": 5}


def test_without_fractions_what_has_a_label_is_train_and_the_rest_is_unlabelled() -> None:
    multi = Source(Path("m.png"), "m", labels=(0, 0))
    sources = [image("a", "x"), image("b"), multi, image("c", "x", split="unlabelled")]
    assigned = assign_splits(sources, {}, seed=0)
    assert split_of(assigned) == {"a": "train", "m": "train", "b": "unlabelled", "c": "unlabelled"}
    assert {one.key: one.label for one in assigned}["c"] is None


def test_too_few_patients_for_the_splits_are_an_error_with_the_way_out() -> None:
    sources = [image(f"{i}", "x", f"p{i % 2}") for i in range(10)]
    with pytest.raises(
        UsageError, match=r"nothing is left for \w+ of 10 images of 2 patients.*patients=none"
    ):
        assign_splits(sources, THIRDS, seed=0)
    assert len(assign_splits([one._replace(patient=None) for one in sources], THIRDS, seed=0)) == 10


def test_patients_in_several_splits_are_found_with_an_image_of_each() -> None:
    sources = [image("1", patient="p", split="train"), image("2", patient="p", split="test")]
    sources += [
        image("3", patient="p", split="test"),
        image("4", patient="q", split="test"),
        image("5", split="val"),
    ]
    (shared,) = check_patients(sources)
    assert shared == ("p", ("test", "train"), ("2", "1"))


def test_fractions_of_the_training_data_may_share_patients() -> None:
    training = ("train", "train_1", "train_10", "unlabelled")
    assert {side(split) for split in training} == {"train"}
    sources = [image(split, patient="p", split=split) for split in training]
    assert check_patients(sources) == []
    assert len(check_patients([*sources, image("x", patient="p", split="training2")])) == 1


def test_numbers_of_patients_are_dense_and_tell_nothing_of_their_names() -> None:
    sources = [image(f"{i}", patient=f"{i // 2:05}") for i in range(400)] + [image("none")]
    numbers = patient_numbers(sources, seed=0)
    assert sorted(numbers.values()) == list(range(200))
    assert patient_numbers(reversed(sources), seed=0) == numbers != patient_numbers(sources, seed=1)
    by_name = [numbers[name] for name in sorted(numbers)]
    assert abs(np.corrcoef(by_name, range(200))[0, 1]) < 0.2


def test_labels_that_overlap_are_divided_evenly_by_patient(shared: Path) -> None:
    path = shared / "data" / "nih_cxr" / "labels.csv"
    if not path.is_file():
        pytest.skip("../shared/data/nih_cxr is not here")
    rows = list(csv.DictReader(path.open()))
    names = list(rows[0])[3:]
    sources = [
        Source(
            Path(row["image"]), row["image"], None, tuple(int(row[name]) for name in names), row["patient"]
        )
        for row in rows
    ]
    splits = {"train": 0.7, "val": 0.1, "test": 0.2}
    divided = assign_splits(sources, splits, seed=0)
    assert check_patients(divided) == []
    labels = np.array([one.labels for one in divided])
    for split, share in splits.items():
        inside = np.array([one.split == split for one in divided])
        assert abs(inside.sum() - share * len(rows)) < 4
        assert (
            np.abs(labels[inside].sum(axis=0) - share * labels.sum(axis=0)).max() < 3
        )  # of 3 to 474 a label
