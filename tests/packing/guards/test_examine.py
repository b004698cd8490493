"""Copies are found whatever was done to them, different pictures are left in peace, and the settings are kept."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from essa_dist.errors import DataError
from essa_dist.packing.guards import (
    FINDINGS_FILE,
    GuardConfig,
    Table,
    examine,
    fingerprint,
    near,
    read_findings,
    table_of,
)

MakeTable = Callable[..., Table]
Scene = Callable[..., Image.Image]


def jpeg(image: Image.Image, quality: int = 50) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def cropped(image: Image.Image, share: float = 0.01) -> Image.Image:
    x, y = round(share * image.width), round(share * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda one: one.resize((one.width // 2, one.height // 2), Image.Resampling.LANCZOS),
    "JPEG": jpeg,
    "brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.2),
    "more contrast": lambda one: ImageEnhance.Contrast(one).enhance(1.3),
    "another window": lambda one: one.point(lambda value: (value - 20) * 255 / 215),
    "cropped": cropped,
}


@pytest.mark.parametrize("name", COPIES)
def test_a_changed_copy_in_another_split_is_found(name: str, make_table: MakeTable, scene: Scene) -> None:
    pictures = [scene(seed) for seed in range(12)]
    copies = [COPIES[name](one) for one in pictures]
    found = examine(make_table([*pictures, *copies], "train " * 12 + "test " * 12), GuardConfig()).near
    assert found is not None
    expected = {(f"k{i + 12}", f"k{i}") for i in range(12)}  # test comes first, by `keep`
    assert {(pair.a, pair.b) for pair in found.pairs} == expected
    assert found.across == 12
    assert found.inside == 0
    assert found.by_splits == {"test|train": 12}


def test_different_and_inverted_pictures_are_not_near(make_table: MakeTable, scene: Scene) -> None:
    pictures = [scene(seed) for seed in range(20)]
    inverted = [ImageOps.invert(one) for one in pictures]
    found = examine(make_table([*pictures, *inverted], "train " * 20 + "test " * 20), GuardConfig())
    assert found.near is not None
    assert found.exact.across + found.exact.inside + found.near.across + found.near.inside == 0


@pytest.mark.parametrize(("folder", "count"), [("nih_cxr/images", 160), ("pbc_blood/monocyte", 80)])
def test_of_real_look_alikes_copies_are_found_and_no_other(
    folder: str, count: int, shared: Path, make_table: MakeTable
) -> None:
    """X-rays of one clinic look alike, and patients come several times: neither makes a duplicate."""
    files = sorted((shared / "data" / folder).iterdir())[:count]
    assert len(files) == count
    pictures = [Image.open(file).convert("L") for file in files]
    copies = [jpeg(one.resize((one.width // 2, one.height // 2))) for one in pictures]
    table = make_table([*pictures, *copies], "train " * count + "test " * count)
    found = examine(table, GuardConfig(pairs=1000))
    assert found.near is not None
    named = {(pair.a, pair.b) for pair in found.near.pairs}
    right = {(f"k{i + count}", f"k{i}") for i in range(count)}
    assert len(named & right) >= 0.99 * count
    assert named - right == set()


def test_the_same_pixels_are_paired_with_their_first_whatever_the_storage(
    make_table: MakeTable, scene: Scene
) -> None:
    a, b = scene(1), scene(2)
    table = make_table([a, b, a.convert("RGB"), a, b], "train train test train train")
    found = examine(table, GuardConfig())
    assert {(pair.a, pair.b, pair.splits) for pair in found.exact.pairs} == {
        ("k2", "k0", ("test", "train")),
        ("k2", "k3", ("test", "train")),
        ("k1", "k4", ("train", "train")),
    }
    assert found.exact.by_splits == {"test|train": 2, "train|train": 1}
    assert [pair.splits[0] for pair in found.exact.pairs] == ["test", "test", "train"]  # leaks first
    assert found.near is not None
    assert found.near.pairs == ()  # the same pixels are not near as well


def test_frames_of_one_file_are_no_duplicates(make_table: MakeTable, scene: Scene) -> None:
    a = scene(3)
    pictures = [a, a, jpeg(a), jpeg(a, 80)]
    found = examine(make_table(pictures, "train " * 4, file=np.array([5, 5, 5, 6])), GuardConfig())
    assert found.near is not None
    assert (found.exact.inside, found.near.inside) == (0, 2)  # k3 with the picture of k0 and k1, and with k2


def test_pairs_of_one_patient_are_counted_apart(make_table: MakeTable, scene: Scene) -> None:
    a, b, c = scene(4), scene(5), scene(6)
    pictures = [a, jpeg(a), b, jpeg(b), c, jpeg(c)]
    found = examine(make_table(pictures, "train " * 6, patient=np.array([7, 7, 7, 8, -1, -1])), GuardConfig())
    assert found.near is not None
    assert {(pair.a, pair.same_patient) for pair in found.near.pairs} == {
        ("k0", True),
        ("k2", False),
        ("k4", False),
    }
    assert found.near.same_patient == 1


def test_what_is_found_does_not_depend_on_the_order_of_the_samples(
    make_table: MakeTable, scene: Scene
) -> None:
    pictures = [scene(seed) for seed in range(8)]
    pictures += [jpeg(one) for one in pictures[:5]] + [pictures[6], pictures[6]]
    splits = list("abcaaabcbcabcac")
    keys = [f"name{i}" for i in range(15)]
    table = make_table(pictures, " ".join(splits), key=keys)
    order = np.random.default_rng(0).permutation(15)
    turned = make_table(
        [pictures[i] for i in order],
        " ".join(splits[i] for i in order),
        key=[keys[i] for i in order],
    )
    a, b = (
        examine(one, GuardConfig(exact="drop", near="drop", keep=tuple("bca"))) for one in (table, turned)
    )
    assert {keys[i] for i in a.drop} == {keys[order[i]] for i in b.drop}
    assert len(a.drop) > 3
    assert a.near is not None
    assert b.near is not None
    assert {frozenset((p.a, p.b)) for p in a.near.pairs} == {frozenset((p.a, p.b)) for p in b.near.pairs}


def test_drop_leaves_the_samples_of_the_split_that_is_kept_first(make_table: MakeTable, scene: Scene) -> None:
    a, b = scene(7), scene(8)
    table = make_table([a, b, a, jpeg(b), a, a], "train train val test train extra")
    default = examine(table, GuardConfig(exact="drop"))
    assert default.drop == (0, 4, 5)  # val is kept before train and extra
    assert default.dropped == {"train": 2, "extra": 1}
    assert examine(table, GuardConfig(exact="drop", keep=("extra",))).drop == (0, 2, 4)
    assert examine(table, GuardConfig(near="drop")).drop == (1,)
    assert examine(table, GuardConfig(near="drop", exact="drop")).drop == (0, 1, 4, 5)
    assert examine(table, GuardConfig()).drop == ()


def test_dropping_a_near_copy_drops_the_same_pixels_with_it(make_table: MakeTable, scene: Scene) -> None:
    a = scene(9)
    table = make_table([a, a, jpeg(a), a], "train train test other")
    assert examine(table, GuardConfig(near="drop")).drop == (0, 1, 3)


def test_refuse_names_an_example_and_the_settings(make_table: MakeTable, scene: Scene) -> None:
    a = scene(10)
    table = make_table([a, scene(11), jpeg(a)], "train train test")
    with pytest.raises(DataError, match=r"1 near .* k2 \(test\) and k0 \(train\): .* guards.near=drop"):
        examine(table, GuardConfig(near="refuse"))
    assert examine(table, GuardConfig(exact="refuse")).near is not None
    with pytest.raises(DataError, match=r"guards.exact=report"):
        examine(make_table([a, a], "train test"), GuardConfig(exact="refuse", pairs=0))
    inside = make_table([a, jpeg(a), a], "train train train")
    assert examine(inside, GuardConfig(exact="refuse", near="refuse")).exact.inside == 1


def test_a_patient_in_two_splits_is_refused_unless_allowed(make_table: MakeTable, scene: Scene) -> None:
    pictures = [scene(seed) for seed in range(6)]
    table = make_table(pictures, "train train test test val val", patient=np.array([3, 4, -1, 3, -1, 9]))
    with pytest.raises(DataError, match=r"1 patients .* k\d: .*guards.patients=report"):
        examine(table, GuardConfig())
    found = examine(table, GuardConfig(patients="report")).patients_across
    assert found.count == 1
    assert found.keys in (("k0",), ("k3",))


def test_pairs_beyond_the_cap_are_counted(make_table: MakeTable, scene: Scene) -> None:
    pictures = [scene(seed) for seed in range(5)]
    table = make_table([*pictures, *map(jpeg, pictures)], "train " * 5 + "test " * 3 + "train " * 2)
    found = examine(table, GuardConfig(pairs=4)).near
    assert found is not None
    assert (found.across, found.inside, len(found.pairs), found.left_off) == (3, 2, 4, 1)
    assert [pair.splits for pair in found.pairs].count(("test", "train")) == 3


def test_a_search_that_was_cut_short_says_so(
    make_table: MakeTable, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "MOST", 1)
    monkeypatch.setattr(near, "BLOCK", 2)
    table = make_table([jpeg(scene(1), quality) for quality in range(40, 60)], "train " * 20)
    found = examine(table, GuardConfig())
    assert found.near is not None
    assert 0 < found.near.inside < 190
    assert any("there may be more" in note for note in found.notes)
    monkeypatch.undo()
    assert examine(table, GuardConfig()).notes == ()


def test_blank_pictures_and_ignored_kinds_are_not_searched(make_table: MakeTable, scene: Scene) -> None:
    blank = [Image.fromarray(np.full((40, 40), 9 + (i == 7), np.uint8)) for i in range(9)]
    assert examine(make_table(blank, "train " * 9), GuardConfig()).near is not None
    found = examine(make_table([scene(1), jpeg(scene(1))], "train test"), GuardConfig(near="ignore"))
    assert found.near is None


def test_findings_are_read_back_and_name_kinds_but_no_rows(
    make_table: MakeTable, scene: Scene, tmp_path: Path
) -> None:
    a = scene(1)
    flags = {"patient name filled in": np.arange(1, 13), "BurnedInAnnotation YES": np.array([2])}
    table = make_table(
        [a, a, *(scene(seed) for seed in range(2, 13))], "train test " + "val " * 11, flags=flags
    )
    found = examine(table, GuardConfig(exact="drop"))
    assert found.flags["patient name filled in"].count == 12
    assert found.flags["patient name filled in"].keys == tuple(f"k{i}" for i in range(1, 11))
    assert found.flags["BurnedInAnnotation YES"].keys == ("k2",)
    found.write(tmp_path)
    assert "drop" not in json.loads((tmp_path / FINDINGS_FILE).read_text())
    assert read_findings(tmp_path) == found.model_copy(update={"drop": ()})
    (tmp_path / FINDINGS_FILE).write_text('{"samples": "many"}')
    with pytest.raises(DataError, match=r"findings\.json can't be understood"):
        read_findings(tmp_path)
    (tmp_path / FINDINGS_FILE).unlink()
    assert read_findings(tmp_path) is None


def test_an_empty_set_has_no_findings(make_table: MakeTable) -> None:
    table = make_table([], "")
    found = examine(table, GuardConfig(exact="drop", near="drop"))
    assert (found.samples, found.exact.inside, found.drop) == (0, 0, ())


def test_similarity_does_not_depend_on_which_pictures_are_beside_it(scene: Scene) -> None:
    a, b = scene(1), cropped(scene(1))
    rows = table_of([fingerprint(np.asarray(one)) for one in (scene(5), a, b, ImageOps.invert(a))])
    many = near.similarities(rows["thumbnail"], np.array([0, 1, 0]), np.array([1, 2, 2]))
    one = near.similarities(rows["thumbnail"], np.array([1]), np.array([2]))
    assert many[1] == pytest.approx(one[0], abs=1e-5)
    assert many[1] > 0.95
    assert max(many[0], many[2]) < 0.7
    assert near.similarities(rows["thumbnail"], np.array([1]), np.array([3]))[0] == 0  # a negative is no copy


def test_training_splits_and_what_is_unlabelled_leak_nothing_to_each_other(
    make_table: MakeTable, scene: Scene
) -> None:
    splits = "train train_1 train_10 unlabelled test"
    once, changed = scene(1), jpeg(scene(1))
    table = make_table([once, once, changed, once, scene(2)], splits, patient=np.array([7, 7, 7, 7, 8]))
    found = examine(table, GuardConfig(patients="refuse", exact="refuse", near="refuse"))
    assert found.patients_across.count == 0
    assert found.near is not None
    assert (found.exact.across, found.exact.inside) == (0, 2)
    assert (found.near.across, found.near.inside) == (0, 3)
    assert examine(table, GuardConfig(exact="drop", near="drop")).drop == ()


def test_what_is_tested_is_dropped_from_every_training_split(make_table: MakeTable, scene: Scene) -> None:
    once = scene(1)
    table = make_table(
        [once, once, jpeg(once), once], "train train_1 unlabelled test", patient=np.zeros(4, int)
    )
    config = GuardConfig(patients="report", exact="drop", near="drop")
    found = examine(table, config)
    assert found.drop == (0, 1, 2)
    assert found.patients_across.count == 1
    assert found.exact.across == 2
