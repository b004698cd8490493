"""MED-PEFT's lists: three chest X-ray sets told apart by their labels, found in whatever folders people have."""

from pathlib import Path

import pytest

from essa_dist.errors import DataError, UsageError
from essa_dist.packing.splits import check_patients

NIH = "0 1 0 0 0 0 0 0 0 0 0 0 0 1"
NONE = " ".join("0" * 14)


def test_nih_lists_beside_the_images_are_recognised_by_themselves(tree, find, by_split, column) -> None:
    root = tree(
        "all_classes/00000003_001.png",
        "all_classes/00000003_002.png",
        "all_classes/00000013_000.png",
        **{
            "train_list.txt": f"00000003_001.png {NIH}\n00000003_002.png {NONE}\n",
            "test_list.txt": f"00000013_000.png {NONE}\r\n",
        },
    )
    found = find(root)
    assert (found.layout, found.label_kind, len(found.classes)) == ("medpeft", "multi", 14)
    first = found.sources[0]
    assert first.labels is not None
    assert [found.classes[i] for i, flag in enumerate(first.labels) if flag] == ["Cardiomegaly", "Hernia"]
    assert column(found, "patient") == {
        "00000003_001": "00000003",
        "00000003_002": "00000003",
        "00000013_000": "00000013",
    }
    assert by_split(found) == {"train": 2, "test": 1}
    assert "NIH" in found.defaults.source


def test_images_are_found_in_numbered_folders_and_in_another_format(tree, find, column) -> None:
    root = tree("images_001/images/00000003_001.jpg", "images_002/images/00000013_000.png")
    lists = tree(
        name="lists", **{"NIH_ChestX-ray.train_1.txt": f"00000003_001.png {NIH}\n00000013_000.png {NIH}\n"}
    )
    assert column(find(root, layout="medpeft", lists=str(lists)), "path") == {
        "00000003_001": root / "images_001/images/00000003_001.jpg",
        "00000013_000": root / "images_002/images/00000013_000.png",
    }


def test_one_training_list_is_train_and_several_keep_their_fractions_with_all_their_images(
    tree, find, by_split, column
) -> None:
    root = tree("1_0.png", "2_0.png")
    one, both = f"1_0.png {NIH}\n", f"1_0.png {NIH}\n2_0.png {NONE}\n"
    lists = tree(name="lists", **{"train_1.txt": one, "train_10.txt": both, "train_list.txt": both})
    assert by_split(find(root, lists=[str(lists / "train_1.txt")])) == {"train": 1}
    found = find(root, lists=str(lists))
    assert by_split(found) == {"train_1": 1, "train_10": 2, "train": 2}
    assert column(found, "split") == {
        "train_1/1_0": "train_1",
        "train_10/1_0": "train_10",
        "train_10/2_0": "train_10",
        "1_0": "train",
        "2_0": "train",
    }
    assert check_patients(found.sources) == []


@pytest.mark.parametrize("top", ["CheXpert-v1.0-small/", "", "archive/CheXpert-v1.0-small/"])
def test_chexpert_is_found_from_above_and_from_inside_its_folder(tree, top: str, find) -> None:
    listed = [f"train/patient0000{i}/study{j}/view1_frontal" for i, j in ((1, 1), (1, 2), (2, 1))]
    root = tree(*(f"{top}{path}.jpg" for path in listed))
    lines = "".join(f"CheXpert-v1.0-small/{path}.jpg 1 0 0 0 1\n" for path in listed)
    found = find(root, lists=str(tree(name="lists", **{"train_list.txt": lines})))
    assert [one.path for one in found.sources] == [root / f"{top}{path}.jpg" for path in listed]
    assert [one.patient for one in found.sources] == ["patient00001", "patient00001", "patient00002"]
    assert found.classes == ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def test_a_chexpert_image_that_is_not_there_is_never_another_patients(tree, find) -> None:
    root = tree("train/patient00001/study1/view1_frontal.jpg")
    lines = "".join(
        f"CheXpert-v1.0-small/train/patient0000{i}/study1/view1_frontal.jpg 0 0 0 0 0\n" for i in (1, 2, 3)
    )
    found = find(root, lists=str(tree(name="lists", **{"train_list.txt": lines})))
    assert [one.patient for one in found.sources] == ["patient00001"]
    assert [path.parts[-3] for path, _ in found.missing] == ["patient00002", "patient00003"]


def test_rsna_has_one_label_and_a_patient_for_each_file(tree, find) -> None:
    names = ["2d29c5d7-cd1e-4fb7-896b-c55b69ca6c96", "1ca201cb-8252-4a1a-a574-1143f72fdaa7"]
    root = tree(f"stage_2_train_images/{names[0]}.dcm", f"stage_2_test_images/{names[1]}.dcm")
    lists = tree(
        name="lists",
        **{
            "train_10.txt": f"stage_2_train_images/{names[0]}.dcm 1 \n",
            "test_list.txt": f"stage_2_test_images/{names[1]}.dcm 0 \n",
        },
    )
    found = find(root, lists=str(lists))
    assert found.classes == ("Pneumonia",)
    assert [(one.split, one.labels, one.patient) for one in found.sources] == [
        ("test", (0,), names[1]),
        ("train", (1,), names[0]),
    ]


def test_nihs_own_lists_without_labels_are_not_taken_for_them(tree, find) -> None:
    root = tree("images/1_0.png", **{"test_list.txt": "1_0.png\n", "train_val_list.txt": "1_0.png\n"})
    assert find(root).layout == "folder"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train_list.txt": f"1_0.png {NIH}\n1_1.png 0 1\n"}, "line 2: 2 labels where the first line has 14"),
        ({"train_list.txt": "1_0.png 0 1\n"}, "2 labels a line; layout=medpeft knows 14 .NIH"),
        ({"train_list.txt": "1_0.png yes\n"}, r"line 1: '1_0\.png yes'; a line is a path and a 0 or 1"),
        ({"train_list.txt": "\n"}, "lists no images"),
        ({"train_list.txt": f"1_0.png {NIH}", "val_list.txt": "1_0.png 1"}, "different data sets"),
        ({"a.train_1.txt": "1_0.png 1", "b.train_1.txt": "1_0.png 1"}, "the same list of different sets"),
        ({"other.txt": "1_0.png 1"}, "no lists in .*: lists= names their folder"),
        ({"train_list.txt": "7_0.png 1\n"}, r"none of the 1 listed files is below .*7_0\.png"),
        ({"train_list.txt": "1_0.png 1\n1_0.png 1\n"}, "duplicate key '1_0'"),
    ],
)
def test_wrong_lists_are_one_line(tree, lists: dict[str, str], message: str, find) -> None:
    root = tree("1_0.png", "1_1.png")
    with pytest.raises((UsageError, DataError), match=message):
        find(root, layout="medpeft", lists=str(tree(name="lists", **lists)))


def test_two_copies_of_a_listed_image_are_not_guessed_between(tree, find) -> None:
    root = tree("small/1_0.jpg", "large/1_0.jpg", **{"train_list.txt": "1_0.png 1\n"})
    with pytest.raises(DataError, match=r"1_0\.png may be any of large/1_0\.jpg, small/1_0\.jpg"):
        find(root)


@pytest.mark.parametrize(("name", "labels"), [("NIH_ChestX-ray", 14), ("CheXpert", 5), ("RSNA_Pneumonia", 1)])
def test_the_published_lists_are_read(shared: Path, tree, name: str, labels: int, find, by_split) -> None:
    lists = sorted((shared / "data" / "medpeft_lists").glob(f"{name}.*.txt"))
    if not lists:
        pytest.skip("../shared/data/medpeft_lists is not here")
    listed = [line.split()[0] for path in lists for line in path.read_text().splitlines()]
    found = find(tree(*listed), lists=[str(path) for path in lists], patients="auto")
    assert by_split(found) == {"train": 200, "val": 200, "test": 200}
    assert (len(found.classes), found.missing) == (labels, ())
    assert all(one.patient for one in found.sources)
    assert check_patients(found.sources) == []
