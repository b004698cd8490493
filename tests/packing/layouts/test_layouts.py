"""What every layout shares: it is recognised or named, settings that mean nothing are refused, patients are known."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from essa_dist.errors import UsageError
from essa_dist.packing.layouts import LAYOUTS, LayoutConfig
from essa_dist.packing.layouts.config import LayoutName


def test_every_layout_can_be_named_and_reads_settings_that_exist() -> None:
    assert set(get_args(LayoutName)) == {"auto", *LAYOUTS}
    for layout in LAYOUTS.values():
        assert layout.settings <= set(LayoutConfig.model_fields)


def test_a_set_that_fits_two_layouts_is_not_guessed(tree, find) -> None:
    root = tree(
        "train_images/a.png",
        **{"train.csv": "id_code,diagnosis\na,0\n", "ISIC_2019_Training_GroundTruth.csv": "image\n"},
    )
    with pytest.raises(UsageError, match="choose one with layout=aptos2019 or layout=isic2019"):
        find(root)
    assert find(root, layout="aptos2019").layout == "aptos2019"


def test_what_fits_nothing_lists_the_layouts(tree, find) -> None:
    with pytest.raises(UsageError, match=r"notes\.txt fits no layout.*layout=folder\|table\|medpeft"):
        find(tree("notes.txt") / "notes.txt")


def test_a_setting_of_another_layout_is_refused_and_its_default_is_not(tree, find) -> None:
    with pytest.raises(
        UsageError, match=r"lists= means nothing to layout=folder; it is a setting of medpeft"
    ):
        find(tree("1.png"), layout="folder", lists="somewhere")
    with pytest.raises(UsageError, match=r"reference_split= means nothing to layout=folder"):
        find(tree("1.png"), reference_split=False)
    assert find(tree("1.png"), reference_split=True, lists=None).layout == "folder"


def test_sources_come_in_the_order_of_their_keys(tree, find, column) -> None:
    root = tree("b.png", "a.png", "B.png")
    assert list(column(find(root), "key")) == ["B", "a", "b"]


def dicom(path: Path, patient: str) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset = FileDataset(path, {}, preamble=bytes(128), file_meta=meta)
    dataset.PatientID = patient
    dataset.save_as(path)


def test_dicom_headers_tell_patients_apart_unless_that_is_not_wanted(tree, find, column) -> None:
    root = tree("a/1.png")
    for name, patient in (("2.dcm", "Z1"), ("1.2.840.7", "Z1"), ("3.dcm", "Z2"), ("4.dcm", "")):
        dicom(root / "a" / name, patient)
    found = find(root)
    assert column(found, "patient") == {
        "a/1": None,
        "a/1_2_840_7": "Z1",
        "a/2": "Z1",
        "a/3": "Z2",
        "a/4": None,
    }
    assert "2 patients by the headers of 3 DICOM files; 1 name none" in found.notes
    assert set(column(find(root, patients="none"), "patient").values()) == {None}


def test_a_header_overrules_a_table_only_when_asked(tree, find, column) -> None:
    root = tree(**{"list.csv": "path,patient\n1.dcm,P\n2.dcm,\n"})
    dicom(root / "1.dcm", "Z")
    dicom(root / "2.dcm", "Z")
    assert column(find(root / "list.csv"), "patient") == {"1": "P", "2": "Z"}
    assert column(find(root / "list.csv", patients="header"), "patient") == {"1": "Z", "2": "Z"}


def test_headers_that_name_one_patient_or_none_are_said(tree, find) -> None:
    root = tree()
    root.mkdir()
    for name in ("1.dcm", "2.dcm"):
        dicom(root / name, "ANONYMOUS")
    assert any("all DICOM headers name the same patient" in note for note in find(root).notes)
    for name in ("1.dcm", "2.dcm"):
        dicom(root / name, "")
    with pytest.raises(UsageError, match="none of 2 headers names a patient; set patients=none"):
        find(root, patients="header")
    with pytest.raises(UsageError, match=r"patients=header: \S* has no DICOM files"):
        find(tree("1.png", name="other"), patients="header")


def test_patients_can_be_read_from_paths(tree, find, column) -> None:
    root = tree("a/patient7/1.png", "b/patient8/1.png")
    assert list(column(find(root, patient_pattern=r"/(patient\d)/"), "patient").values()) == [
        "patient7",
        "patient8",
    ]
    with pytest.raises(UsageError, match=r"matches nothing in b/patient8/1\.png"):
        find(root, patient_pattern="(7)")
    for wrong in ("(", "no group", "(a)(b)"):
        with pytest.raises(ValidationError, match=r"not a regular expression|must have one group"):
            LayoutConfig(patient_pattern=wrong)
