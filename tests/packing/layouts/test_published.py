"""Published data sets, each with the names its files truly have; and the reference's division of two of them."""

import random
from itertools import product
from pathlib import Path

import pytest

from essa_dist.errors import DataError, UsageError
from essa_dist.packing.layouts.published import seed_42


def reference_ids(total_size: int, val_size: float) -> tuple[list[int], list[int], list[int]]:
    """Row numbers for training, validation and test, drawn step by step as the reference says."""
    idxs = list(range(total_size))
    random.Random(42).shuffle(idxs)
    held_out = int(total_size * val_size)
    train, rest = idxs[held_out:], idxs[:held_out]
    return train, rest[: int(len(rest) / 2)], rest[int(len(rest) / 2) :]


@pytest.mark.parametrize(
    ("rows", "val_size", "sizes"),
    [
        (3_662, 0.3, (2564, 549, 549)),
        (25_331, 0.2, (20265, 2533, 2533)),
        (7, 0.3, (5, 1, 1)),
        (11, 0.3, (8, 1, 2)),
    ],
)
def test_the_seed_42_rule_is_the_references_row_by_row(
    rows: int, val_size: float, sizes: tuple[int, ...]
) -> None:
    splits = seed_42(rows, val_size)
    drawn = reference_ids(rows, val_size)
    assert tuple(map(len, drawn)) == sizes
    for name, ids in zip(("train", "val", "test"), drawn, strict=True):
        assert {row for row, split in enumerate(splits) if split == name} == set(ids)


def aptos(tree, rows: int) -> tuple[Path, list[str]]:
    ids = [f"{row * 7919 % 65536:012x}" for row in range(rows)]
    text = "id_code,diagnosis\n" + "".join(f"{name},{row % 5}\n" for row, name in enumerate(ids))
    return tree(*(f"train_images/{name}.png" for name in ids), **{"train.csv": text}), ids


def test_aptos2019_is_divided_in_the_order_of_its_rows(tree, find, by_split, column) -> None:
    root, ids = aptos(tree, 20)
    found = find(root)
    assert (found.layout, found.label_kind, found.classes[0], found.classes[4]) == (
        "aptos2019",
        "single",
        "No DR",
        "Proliferative DR",
    )
    split = column(found, "split")
    _, val, test = reference_ids(20, 0.3)
    assert [split[ids[row]] for row in (*val, *test)] == ["val"] * 3 + ["test"] * 3
    assert by_split(found) == {"train": 14, "val": 3, "test": 3}
    assert column(found, "label")[ids[3]] == "Severe"
    assert by_split(find(root, reference_split=False)) == {None: 20}


def test_an_aptos2019_image_that_is_missing_does_not_move_the_others(tree, find, column) -> None:
    root, ids = aptos(tree, 20)
    before = column(find(root), "split")
    (root / "train_images" / f"{ids[4]}.png").unlink()
    found = find(root)
    assert column(found, "split") == {key: split for key, split in before.items() if key != ids[4]}
    assert found.missing == ((root / "train_images" / f"{ids[4]}.png", "no such file"),)


def test_a_grade_that_is_none_is_named(tree, find) -> None:
    root = tree("train_images/a.png", **{"train.csv": "id_code,diagnosis\na,5\n"})
    with pytest.raises(DataError, match=r"train\.csv, line 2: diagnosis '5'; it is a grade from 0 to 4"):
        find(root)


ISIC = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"


def isic(tree, *rows: str, metadata: str = "") -> Path:
    names = [row.split(",")[0] for row in rows]
    files = [f"ISIC_2019_Training_Input/ISIC_2019_Training_Input/{name}.jpg" for name in names]
    tables = {"ISIC_2019_Training_GroundTruth.csv": ISIC + "\n".join(rows) + "\n"}
    if metadata:
        header = "image,age_approx,anatom_site_general,lesion_id,sex\n"
        tables["ISIC_2019_Training_Metadata.csv"] = header + metadata
    return tree(*files, **tables)


def test_isic2019_has_eight_classes_and_the_references_division(tree, find, by_split, column) -> None:
    hot = ["1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0", "0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0"]
    root = isic(tree, *(f"ISIC_00{row:02}_downsampled,{hot[row % 2]}" for row in range(20)))
    found = find(root)
    assert (found.layout, len(found.classes), by_split(found)) == (
        "isic2019",
        8,
        {"train": 16, "val": 2, "test": 2},
    )
    assert column(found, "label")["ISIC_0001_downsampled"] == "SCC"
    _, val, _ = reference_ids(20, 0.2)
    assert {key for key, split in column(found, "split").items() if split == "val"} == {
        f"ISIC_00{row:02}_downsampled" for row in val
    }


def test_lesions_that_the_reference_parts_are_said_and_kept_whole_on_request(tree, find, column) -> None:
    rows = [f"ISIC_00{row:02},0,1,0,0,0,0,0,0,0" for row in range(20)]
    metadata = "".join(f"ISIC_00{row:02},55.0,anterior torso,L{row // 10},male\n" for row in range(18))
    root = isic(tree, *rows, metadata=metadata)
    found = find(root)
    assert set(column(found, "patient").values()) == {None}
    assert "is by image: 2 of 2 lesions have images in several splits" in found.notes[0]
    whole = find(root, reference_split=False)
    assert column(whole, "patient")["ISIC_0017"] == "L1"
    assert column(whole, "patient")["ISIC_0018"] is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,1,0,0,0,0,0,0,0", "line 2: exactly one of MEL, .* must be 1, got MEL and NV"),
        ("a,0,0,0,0,0,0,0,0,0", "line 2: exactly one of MEL, .* got none"),
        ("a,x,0,0,0,0,0,0,0,1", "line 2: 'x' where 0 or 1 must stand"),
    ],
)
def test_a_row_that_is_not_one_hot_is_named(tree, row: str, message: str, find) -> None:
    with pytest.raises(DataError, match=message):
        find(isic(tree, row))


def test_isic2018_segmentation_takes_the_masks_of_each_part(tree, find, by_split, column) -> None:
    root = tree(
        "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg",
        "ISIC2018_Task1-2_Training_Input/ATTRIBUTION.txt",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png",
        "ISIC2018_Task1-2_Validation_Input/ISIC_0012255.jpg",
        "ISIC2018_Task1_Validation_GroundTruth/ISIC_0012255_segmentation.png",
        "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg",
    )
    found = find(root)
    assert (found.layout, found.label_kind, found.mask_classes) == (
        "isic2018",
        "none",
        ("background", "lesion"),
    )
    assert by_split(found) == {"train": 1, "val": 1}
    assert column(found, "mask")["ISIC_0012255"] == (
        root / "ISIC2018_Task1_Validation_GroundTruth/ISIC_0012255_segmentation.png"
    )
    assert (
        "ISIC2018_Task1-2_Test_Input is left out: there is no ISIC2018_Task1_Test_GroundTruth" in found.notes
    )


def test_isic2018_classification_takes_lesions_for_patients_and_tasks_are_not_guessed(
    tree, find, by_split, column
) -> None:
    header = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    root = tree(
        "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg",
        "ISIC2018_Task3_Training_Input/ISIC_0024307.jpg",
        "ISIC2018_Task3_Validation_Input/ISIC_0034321.jpg",
        **{
            "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv": header
            + "ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0\nISIC_0024307,0.0,0.0,0.0,1.0,0.0,0.0,0.0\n",
            "ISIC2018_Task3_Validation_GroundTruth.csv": header
            + "ISIC_0034321,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n",
            "ISIC2018_Task3_Training_LesionGroupings.csv": "image,lesion_id,diagnosis_confirm_type\n"
            "ISIC_0024306,HAM_0000550,follow up\nISIC_0024307,HAM_0003577,follow up\n",
        },
    )
    found = find(root)
    assert column(found, "label") == {"ISIC_0024306": "NV", "ISIC_0024307": "AKIEC", "ISIC_0034321": "NV"}
    assert column(found, "patient")["ISIC_0024307"] == "HAM_0003577"
    assert by_split(found) == {"train": 2, "val": 1}
    tree("ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg")
    with pytest.raises(UsageError, match="tasks 1 and 3: set isic2018_task="):
        find(root)
    assert find(root, isic2018_task="classification").sources == found.sources


DDSM = (
    "normal_01_A_0200_1.LEFT_CC.jpg",
    "benign_03_C_0045_1.RIGHT_MLO.jpg",
    "cancer_05_D_3001_1.LEFT_CC.jpg",
)


def test_ddsm_lists_give_splits_and_names_give_two_classes_or_three(tree, find) -> None:
    root = tree(
        *(f"ddsm_raw/{name}" for name in DDSM),
        "ddsm_raw/cancer_05_D_3001_1.LEFT_CC_Mask.jpg",
        "ddsm_raw/normal_01_A_0999_1.LEFT_CC.jpg",
        **{
            "ddsm_raw_image_lists/train.txt": f"{DDSM[0]}\n{DDSM[2]}\nnormal_01_A_0001_1.LEFT_CC.jpg\n",
            "ddsm_raw_image_lists/test.txt": f"{DDSM[1]}\n",
        },
    )
    found = find(root)
    assert (found.layout, found.classes) == ("ddsm", ("normal", "abnormal"))
    assert [(one.label, one.split, one.patient) for one in found.sources] == [
        ("abnormal", "test", "C_0045"),
        ("abnormal", "train", "D_3001"),
        ("normal", "train", "A_0200"),
    ]
    assert [path.name for path, _ in found.missing] == ["normal_01_A_0001_1.LEFT_CC.jpg"]
    assert any("1 outlines" in note for note in found.notes)
    assert any("1 images are in none of these lists" in note for note in found.notes)
    assert find(root, ddsm_classes=3).classes == ("normal", "benign", "cancer")


def test_ddsm_folders_are_divided_by_case(tree, find, by_split) -> None:
    root = tree(
        "normal/0200/A_0200_1.LEFT_CC.jpg",
        "normal/0200/A_0200_1.LEFT_MLO.jpg",
        "cancer/0045/C_0045_1.LEFT_CC.jpg",
    )
    assert find(root).layout == "folder"  # three class folders could be of any set
    found = find(root, layout="ddsm")
    assert [one.patient for one in found.sources] == ["C_0045", "A_0200", "A_0200"]
    assert by_split(found) == {None: 3}
    with pytest.raises(UsageError, match="has neither ddsm_raw nor normal, benign, cancer"):
        find(tree("x/1.png", name="other"), layout="ddsm")


def test_a_file_listed_in_two_splits_is_refused(tree, find) -> None:
    lists = {f"ddsm_raw_image_lists/{split}.txt": f"{DDSM[0]}\n" for split in ("train", "test")}
    root = tree(f"ddsm_raw/{DDSM[0]}", **lists)
    with pytest.raises(DataError, match=r"test\.txt, line 1: normal_01.* is in train\.txt too"):
        find(root)


def test_nct_crc_tests_on_the_other_centre_and_leaves_the_rest_to_be_divided(tree, find, column) -> None:
    root = tree(
        "NCT-CRC-HE-100K/ADI/ADI-AAAFLCLY.tif",
        "NCT-CRC-HE-100K/TUM/TUM-AACS.tif",
        "CRC-VAL-HE-7K/ADI/ADI-TCGA-AAIC.tif",
    )
    found = find(root)
    assert (found.layout, len(found.classes)) == ("nct_crc", 9)
    assert column(found, "split") == {
        "CRC-VAL-HE-7K/ADI/ADI-TCGA-AAIC": "test",
        "NCT-CRC-HE-100K/ADI/ADI-AAAFLCLY": None,
        "NCT-CRC-HE-100K/TUM/TUM-AACS": None,
    }
    tree("NCT-CRC-HE-100K-NONORM/ADI/ADI-AAAFLCLY.tif")
    with pytest.raises(UsageError, match="the same tiles twice"):
        find(root)


KATHER = (
    "01_TUMOR",
    "02_STROMA",
    "03_COMPLEX",
    "04_LYMPHO",
    "05_DEBRIS",
    "06_MUCOSA",
    "07_ADIPOSE",
    "08_EMPTY",
)


@pytest.mark.parametrize("top", ["", "Kather_texture_2016_image_tiles_5000/"])
def test_colorectal_slides_are_patients_unless_lists_part_them(tree, top: str, find, by_split) -> None:
    names = {
        f"{folder}/{i}A11_CRC-Prim-HE-0{i}_022.tif_Row_{i}_Col_151.tif": i
        for folder, i in product(KATHER, (1, 2))
    }
    root = tree(*(top + name for name in names))
    found = find(root)
    assert (found.layout, found.classes, len(found.sources)) == ("colorectal", KATHER, 16)
    assert {one.patient for one in found.sources} == {"CRC-Prim-HE-01", "CRC-Prim-HE-02"}
    lists = {"train.txt": list(names)[:12], "test.txt": list(names)[12:]}
    for name, paths in lists.items():
        (root / name).write_text("\n".join(f"images/{path}" for path in paths))
    listed = find(root)
    assert by_split(listed) == {"train": 12, "test": 4}
    assert {one.patient for one in listed.sources} == {None}
    assert "2 of 2 slides have images in several splits" in listed.notes[-1]
    assert find(root, reference_split=False).sources == found.sources


def test_pneumonia_knows_children_by_the_names_of_files(tree, find, by_split, column) -> None:
    names = {
        "train/PNEUMONIA/person1_bacteria_1.jpeg": "person1_bacteria",
        "train/PNEUMONIA/person1_bacteria_2.jpeg": "person1_bacteria",
        "test/PNEUMONIA/person1_virus_6.jpeg": "person1_virus",
        "train/NORMAL/IM-0115-0001.jpeg": "IM-0115",
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg": "NORMAL2-IM-1427",
        "train/PNEUMONIA/BACTERIA-1008087-0001.jpeg": "BACTERIA-1008087",
        "test/NORMAL/NORMAL-28501-0001.jpeg": "NORMAL-28501",
    }
    found = find(
        tree(*names, "__MACOSX/train/NORMAL/._IM-0115-0001.jpeg", "chest_xray/train/NORMAL/IM-0115-0001.jpeg")
    )
    assert (found.layout, found.classes) == ("pneumonia", ("NORMAL", "PNEUMONIA"))
    assert column(found, "patient") == {key.removesuffix(".jpeg"): patient for key, patient in names.items()}
    assert by_split(found) == {"train": 4, "val": 1, "test": 2}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("aptos2019", r"has no train\.csv: layout=aptos2019 needs train\.csv and train_images in it"),
        ("isic2018", "has none of ISIC2018_Task1-2_Training_Input"),
        ("isic2019", r"has no ISIC_2019_Training_GroundTruth\.csv"),
        ("nct_crc", "has none of NCT-CRC-HE-100K"),
        ("colorectal", "has no 01_TUMOR"),
        ("pneumonia", "lacks one of train and test"),
        ("medpeft", "no lists in"),
    ],
)
def test_a_layout_that_does_not_fit_says_what_it_needs(tree, layout: str, message: str, find) -> None:
    with pytest.raises(UsageError, match=message):
        find(tree("a/1.png"), layout=layout)
