"""Tables: which column means what, and every wrong row one line that names it."""

from pathlib import Path

import pytest

from essa_dist.errors import DataError, UsageError

IMAGES = ("x/0.png", "x/1.png", "x/2.png")


def table(tree, *rows: str, name: str = "list.csv") -> Path:
    return tree(*IMAGES, **{name: "\n".join(rows) + "\n"}) / name


def test_a_table_gives_path_label_patient_split_and_key(tree, find, by_split, column) -> None:
    listing = table(
        tree,
        "path,label,patient,split,key",
        "x/0.png,10,p1,train,first",
        "x/1.png,9,,val,",
        "x/2.png,9,p2,unlabelled,third.v2",
    )
    found = find(listing)
    assert (found.layout, found.label_kind, found.classes) == ("table", "single", ("9", "10"))
    assert column(found, "label") == {"first": "10", "x/1": "9", "third_v2": None}
    assert column(found, "patient") == {"first": "p1", "x/1": None, "third_v2": "p2"}
    assert by_split(found) == {"train": 1, "val": 1, "unlabelled": 1}


def test_tab_separated_and_parquet_tables_say_the_same_as_a_csv(tree, tmp_path: Path, find) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "path": ["x/0.png", "x/1.png", "x/2.png"],
        "patient": [7, 8, None],
        "A": [1.0, 0.0, None],
        "B": [True, False, None],
    }
    pq.write_table(pa.table(rows), tree(*IMAGES) / "list.parquet")
    csv = table(tree, "path,patient,A,B", "x/0.png,7,1,1", "x/1.png,8,0,0", "x/2.png,,,")
    tsv = table(
        tree, "path\tpatient\tA\tB", "x/0.png\t7\t1\t1", "x/1.png\t8\t0\t0", "x/2.png", name="list.tsv"
    )
    expected = find(csv).sources
    assert [one.labels for one in expected] == [(1, 1), (0, 0), None]
    assert [one.patient for one in expected] == ["7", "8", None]
    assert find(tsv).sources == find(tmp_path / "data" / "list.parquet").sources == expected


def test_columns_of_0_1_and_minus_1_are_labels_and_other_columns_are_not(tree, find, column) -> None:
    listing = table(tree, "path,age,Mass,why,Edema", "x/0.png,61,1,,-1.0", "x/1.png,1,0,,", "x/2.png,0,0,,0")
    found = find(listing)
    assert (found.label_kind, found.classes) == ("multi", ("Mass", "Edema"))
    assert column(found, "labels") == {"x/0": (1, -1), "x/1": (0, -1), "x/2": (0, 0)}
    assert "labels from 2 columns of 0 and 1: Mass, Edema" in found.notes[0]


def test_label_columns_can_be_chosen_or_left(tree, find) -> None:
    listing = table(tree, "path,sex,A", "x/0.png,1,1", "x/1.png,0,1")
    assert find(listing, label_columns=["A"]).classes == ("A",)
    assert find(listing, label_columns=[]).label_kind == "none"
    with pytest.raises(UsageError, match=r"no column `Z`; it has: path, sex, A"):
        find(listing, label_columns=["Z"])
    with pytest.raises(DataError, match=r"line 2: `path` is 'x/0\.png'; a label column holds 0, 1, -1"):
        find(listing, label_columns=["path"])


def test_a_column_of_several_names_gives_a_flag_for_each(tree, find, column) -> None:
    rows = ["path,labels", "x/0.png,Edema|Mass", "x/1.png,No Finding", "x/2.png,"]
    found = find(table(tree, *rows))
    assert (found.label_kind, found.classes) == ("multi", ("Edema", "Mass"))
    assert column(found, "labels") == {"x/0": (1, 1), "x/1": (0, 0), "x/2": None}
    semicolons = table(tree, *(row.replace("|", ";") for row in rows))
    assert find(semicolons, label_separator=";").sources == found.sources


def test_the_table_of_chestxray14_needs_three_names(tree, find, column) -> None:
    listing = tree(
        "images_001/images/00000001_000.png",
        "images_002/images/00001336_000.png",
        **{
            "Data_Entry_2017.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
            "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
            "00000001_000.png,Cardiomegaly|Emphysema,0,1,058Y,M,PA,2682,2749,0.143,0.143\n"
            "00001336_000.png,No Finding,0,1336,061Y,F,AP,2500,2048,0.168,0.168\n"
        },
    )
    names = {"path": "Image Index", "labels": "Finding Labels", "patient": "Patient ID"}
    found = find(listing / "Data_Entry_2017.csv", columns=names)
    assert column(found, "labels") == {"00000001_000": (1, 1), "00001336_000": (0, 0)}
    assert column(found, "patient") == {"00000001_000": "1", "00001336_000": "1336"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("paths,label", "no column `path`, but `paths`: rename it or set columns.path=paths"),
        ("file,label", r"no column `path`; it has: file, label; .*\(columns\.path=file\?\)"),
        ("path,lable", "no column `label`, but `lable`.*columns.label=null"),
        ("path,patient_id", "no column `patient`, but `patient_id`"),
        ("path,path", "two columns are called `path`"),
    ],
)
def test_a_table_without_its_columns_names_the_nearest(tree, header: str, message: str, find) -> None:
    with pytest.raises(UsageError, match=message):
        find(table(tree, header, "x/0.png,x"))


def test_a_column_set_to_null_is_left_out_and_one_named_must_be_there(tree, find) -> None:
    listing = table(tree, "path,patient_id", "x/0.png,7")
    assert find(listing, columns={"patient": None}).sources[0].patient is None
    assert find(listing, columns={"patient": "patient_id"}).sources[0].patient == "7"
    with pytest.raises(UsageError, match=r"no column `who`; it has: path, patient_id; columns\.patient="):
        find(listing, columns={"patient": "who"})


def test_one_class_and_several_at_once_are_refused_until_one_is_left_out(tree, find) -> None:
    listing = table(tree, "path,label,labels", "x/0.png,a,a|b")
    with pytest.raises(UsageError, match=r"has both `label` .* and `labels` .*columns\.label=null"):
        find(listing)
    assert find(listing, columns={"label": None}).label_kind == "multi"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path"], "lists no images"),
        (["path,label", ",a"], "line 2: `path` is empty"),
        (["path,split", "", "x/0.png,my split"], "line 3: split 'my split'"),
        (["path,split", "x/0.png,Test", "x/1.png,test"], "line 3: split 'test', but 'Test' above"),
        (["path,label", "x/0.png,a,b"], "line 2: 3 cells under 2 columns"),
        (["path", "x/0.png", "x/0.png"], r"duplicate key 'x/0'"),
        (
            ["path", "y/0.png", "z/0.png"],
            r"none of its 2 files is there, the first would be .*y/0\.png; root=",
        ),
    ],
)
def test_a_wrong_row_is_named(tree, rows: list[str], message: str, find) -> None:
    with pytest.raises(DataError, match=message):
        find(table(tree, *rows))


def test_a_file_that_is_no_table_is_refused(tree, find) -> None:
    root = tree("a.png")
    for name in ("binary.csv", "binary.parquet"):
        (root / name).write_bytes(b"path\n\xff\xfe\x00")
        with pytest.raises(UsageError, match=r"is not a (CSV in UTF-8|Parquet file)"):
            find(root / name)
    with pytest.raises(UsageError, match="layout=table takes a CSV"):
        find(root, layout="table")


def test_listed_files_that_are_not_there_are_named_and_the_rest_is_found(tree, find, column) -> None:
    listing = table(tree, "path,mask", "x/0.png,x/1.png", "x/7.png,", "x/2.png,x/9.png")
    found = find(listing)
    root = listing.parent
    assert found.missing == ((root / "x/9.png", "no such file"), (root / "x/7.png", "no such file"))
    assert column(found, "mask") == {"x/0": root / "x/1.png", "x/2": None}


def test_paths_go_from_root_and_masks_from_their_own_folder(tree, find, column) -> None:
    listing = table(tree, "path,mask", "0.png,2.png")
    root = listing.parent
    found = find(listing, root=str(root / "x"), masks=str(root / "x"))
    assert column(found, "mask") == {"0": root / "x" / "2.png"}
    with pytest.raises(UsageError, match="root=nowhere is no folder"):
        find(listing, root="nowhere")


def test_the_chest_x_rays_need_one_name(shared: Path, find, by_split) -> None:
    source = shared / "data" / "nih_cxr" / "labels.csv"
    if not source.is_file():
        pytest.skip("../shared/data/nih_cxr is not here")
    found = find(source, columns={"path": "image"})
    assert by_split(found) == {"train": 704, "val": 77, "test": 219}
    assert (found.label_kind, len(found.classes), found.missing) == ("multi", 14, ())
    assert len({one.patient for one in found.sources}) == 682


def test_the_nuclei_need_one_name_and_have_their_masks(shared: Path, find, by_split) -> None:
    source = shared / "data" / "dsb2018" / "index.csv"
    if not source.is_file():
        pytest.skip("../shared/data/dsb2018 is not here")
    found = find(source, columns={"path": "image", "label": "stain"})
    assert by_split(found) == {"train": 171, "val": 56, "test": 56}
    assert found.classes == ("bright", "fluo", "he")
    assert all(one.path.parent.name == "images" and one.mask is not None for one in found.sources)


def test_labels_that_may_be_several_take_the_place_of_a_single_one(tree, find, column) -> None:
    listing = table(tree, "path,label,split,A,B", "x/0.png,cat,train,1,0", "x/1.png,dog,unlabelled,1,1")
    found = find(listing, label_columns=["B", "A"])
    assert (found.label_kind, found.classes) == ("multi", ("B", "A"))
    assert column(found, "labels") == {"x/0": (0, 1), "x/1": None}
    assert set(column(found, "label").values()) == {None}
