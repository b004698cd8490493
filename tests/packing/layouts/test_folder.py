"""A folder of images: what its folders mean, and which mask is whose."""

from pathlib import Path

import pytest

from essa_dist.errors import DataError, UsageError


def test_class_folders_become_labels_without_a_split(tree, find, by_split, column) -> None:
    found = find(tree("b/1.png", "a/x/2.jpg", "a/3.dcm"))
    assert (found.layout, found.label_kind, found.classes) == ("folder", "single", ("a", "b"))
    assert column(found, "label") == {"a/3": "a", "a/x/2": "a", "b/1": "b"}
    assert by_split(found) == {None: 3}


def test_numbered_classes_are_in_the_order_of_their_values(tree, find) -> None:
    assert find(tree("10/1.png", "9/1.png")).classes == ("9", "10")


def test_images_alone_have_no_label(tree, find, column) -> None:
    found = find(tree("2.png", "1.nii.gz"))
    assert (found.label_kind, found.classes, list(column(found, "label").values())) == (
        "none",
        (),
        [None, None],
    )


def test_split_folders_hold_classes_and_unlabelled_ones_lose_theirs(tree, find, by_split, column) -> None:
    found = find(tree("train/a/1.png", "Validation/b/1.png", "test/a/1.png", "unlabelled/c/1.png"))
    assert by_split(found) == {"train": 1, "val": 1, "test": 1, "unlabelled": 1}
    assert found.classes == ("a", "b")
    assert column(found, "label")["unlabelled/c/1"] is None


def test_a_folder_that_can_be_no_split_beside_train_is_refused(tree, find) -> None:
    with pytest.raises(UsageError, match=r"test, train name splits but holdout can't: use only train, val"):
        find(tree("train/1.png", "test/1.png", "holdout/1.png"))


def test_an_image_beside_class_folders_is_refused(tree, find) -> None:
    with pytest.raises(UsageError, match=r"0\.png lies beside folders of images.*cat"):
        find(tree("0.png", "cat/1.png"))


def test_the_dots_of_a_uid_are_all_kept_apart_in_keys(tree, find, column) -> None:
    root = tree("1.2.840.1.dcm", "1.2.840.2.dcm")
    for name in ("1.2.840.3", "1.2.840.4"):
        (root / name).write_bytes(bytes(128) + b"DICM")
    keys = ["1_2_840_1", "1_2_840_2", "1_2_840_3", "1_2_840_4"]
    assert list(column(find(root, patients="none"), "key")) == keys


def test_hidden_files_and_what_a_mac_adds_do_not_count(tree, find, column) -> None:
    root = tree("a/1.png", "a/.2.png", ".git/3.png", "__MACOSX/a/1.png", "a/notes.txt")
    found = find(root)
    assert list(column(found, "path")) == ["a/1"]
    assert found.notes == (f"{root}: files that are not images, and are ignored: 1",)


def test_a_link_to_a_folder_is_followed_unless_it_leads_to_itself(tree, find, column) -> None:
    root, other = tree("a/1.png"), tree("2.png", name="other")
    (root / "b").symlink_to(other)
    (root / "a" / "loop").symlink_to(root)
    assert list(column(find(root), "path")) == ["a/1", "b/2"]


def test_images_have_the_masks_of_their_names_in_the_folder_beside(tree, find, column) -> None:
    root = tree("images/a/1.png", "images/b/2.jpg", "masks/a/1.png", "masks/b/2.png", "masks/b/3.png")
    found = find(root)
    assert column(found, "mask") == {"a/1": root / "masks/a/1.png", "b/2": root / "masks/b/2.png"}
    assert (found.mask_classes, found.classes) == (("background", "foreground"), ("a", "b"))
    assert found.notes == (f"1 masks in {root} belong to no image",)


def test_splits_may_hold_images_and_masks(tree, find, by_split, column) -> None:
    root = tree("train/images/1.png", "train/masks/1.png", "test/images/1.png", "test/masks/1.png")
    found = find(root)
    assert by_split(found) == {"train": 1, "test": 1}
    assert column(found, "mask") == {
        "test/1": root / "test/masks/1.png",
        "train/1": root / "train/masks/1.png",
    }
    assert found.label_kind == "none"


def test_masks_can_be_named_and_have_a_suffix(tree, find, column) -> None:
    root, masks = tree("1.png", "2.png"), tree("1_seg.png", name="other")
    found = find(root, masks=str(masks), mask_suffix="_seg", mask_classes=["no", "yes", "edge"])
    assert column(found, "mask") == {"1": masks / "1_seg.png", "2": None}
    assert found.mask_classes == ("no", "yes", "edge")
    assert "1 of 2 images have no mask, e.g. 2_seg" in found.notes[0]


def test_masks_none_of_which_fit_are_an_error_that_shows_one_of_each(tree, find) -> None:
    root = tree("images/1.png", "masks/1_m.png")
    with pytest.raises(
        DataError, match=r"none of the 1 images has a mask.*masks/1, but masks/1_m; mask_suffix="
    ):
        find(root)


def test_a_missing_path_an_empty_folder_and_one_without_images_are_told_apart(
    tmp_path: Path, tree, find
) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .* \(0 other files\)"):
        find(tmp_path / "empty")
    with pytest.raises(DataError, match=r"\(1 other files\); known suffixes: \.jpg"):
        find(tree("notes.txt"))


def test_the_nuclei_are_found_with_their_masks(shared: Path, find) -> None:
    source = shared / "data" / "dsb2018"
    if not source.is_dir():
        pytest.skip("../shared/data/dsb2018 is not here")
    found = find(source)
    assert len(found.sources) == 283
    assert all(one.mask is not None and one.mask.name == one.path.name for one in found.sources)


def test_files_that_only_their_suffix_tells_apart_are_both_packed(tree, find, column) -> None:
    found = find(tree("a/scan.png", "a/scan.TIF", "a/other.png"))
    assert list(column(found, "key")) == ["a/other", "a/scan_TIF", "a/scan_png"]


def test_one_folder_called_images_is_no_class_and_a_list_beside_it_is_named(tree, find) -> None:
    found = find(tree("images/1.png", "images/2.png", "labels.csv"))
    assert found.label_kind == "none"
    assert any("essa pack" in note and "labels.csv" in note for note in found.notes)
