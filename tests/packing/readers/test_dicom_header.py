"""Nothing of a DICOM header that identifies is copied, and what is left in it is named by kind."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from essa_dist.packing.readers import ReadConfig, read_frames
from essa_dist.packing.readers.dicom_header import CODES, IDENTIFIERS, KINDS

pydicom = pytest.importorskip("pydicom")
PICTURE = np.zeros((2, 2), np.uint8)
TEXT = ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "UR", "AE", "DA", "DT", "TM", "UI", "AS")


def header(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    frame = next(read_frames(path, ReadConfig()))
    return frame.about, frame.flags


def texts(ds: Any) -> Iterator[str]:
    """All values of a header, to the bottom of its sequences, that may identify."""
    allowed = {str(ds.get(keyword, "")).upper() for keyword in CODES}
    for element in ds.iterall():
        if element.VR in TEXT or element.tag.is_private:
            value = element.value
            several = value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
            for one in several:
                if len(str(one)) > 3 and str(one).upper() not in allowed:
                    yield str(one).upper()


@pytest.mark.filterwarnings("ignore")
def test_no_identifying_value_of_a_real_file_is_in_what_is_kept(samples: list[Path]) -> None:
    looked_for = 0
    for path in samples:
        try:
            about, flags = header(path)
        except ValueError:
            continue
        kept = " ".join(str(value) for value in about.values()).upper()
        for value in texts(pydicom.dcmread(path, force=True)):
            assert value not in kept, (path.name, value)
            assert not any(value in flag.upper() for flag in flags), (path.name, value)
            looked_for += 1
    assert looked_for > 1000


def test_no_field_of_text_is_kept_but_those_on_the_list(make_dicom: Any) -> None:
    path = make_dicom(PICTURE)
    ds = pydicom.dcmread(path)
    wide = {"DA": "19010203", "DT": "19010203040506", "TM": "040506", "AS": "077Y", "UI": "1.2.77.66.55"}
    filled = 0
    for tag, (vr, *_, keyword) in pydicom.datadict.DicomDictionary.items():
        if (
            vr in TEXT
            and keyword
            and tag >> 16 not in (0, 2, 0x28)
            and keyword not in ("SOPClassUID", *CODES)
        ):
            ds.add_new(tag, vr, wide.get(vr, "SECRET"))
            filled += 1
    block = ds.private_block(0x11, "SECRET", create=True)
    block.add_new(1, "LO", "SECRET")
    ds.save_as(path)
    about, flags = header(path)
    kept = f"{about} {flags}"
    assert filled > 1000
    assert not [value for value in ("SECRET", *wide.values()) if value in kept]


@pytest.mark.parametrize("body", ["DOE", "JANE DOE", "P1729 CHEST", "Knee of J. Doe", "X" * 17])
def test_a_code_that_holds_a_name_or_is_no_code_is_left_out(make_dicom: Any, body: str) -> None:
    about, _ = header(make_dicom(PICTURE, PatientName="Doe^Jane", PatientID="P1729", BodyPartExamined=body))
    assert "body_part" not in about
    assert about["modality"] == "CT"


def test_the_allowed_fields_are_kept(make_dicom: Any) -> None:
    about, _ = header(
        make_dicom(
            PICTURE,
            Modality="DX",
            BodyPartExamined="CHEST",
            ViewPosition="PA",
            ImageLaterality="L",
            PatientOrientation=["L", "F"],
            ImagerPixelSpacing=[0.2, 0.1],
        )
    )
    assert about == {
        "modality": "DX",
        "body_part": "CHEST",
        "view": "PA",
        "laterality": "L",
        "orientation": "L/F",
        "photometric": "MONOCHROME2",
        "rows": 2,
        "columns": 2,
        "bits_stored": 8,
        "transfer_syntax": "Explicit VR Little Endian",
        "spacing_y_mm": 0.2,
        "spacing_x_mm": 0.1,
    }


def test_each_identifier_on_the_list_exists_and_raises_its_kind_alone(make_dicom: Any) -> None:
    values = {"DA": "19010203", "TM": "040506", "AS": "077Y", "DS": "80", "IS": "3", "US": 1, "CS": "F"}
    for keyword, kind in KINDS.items():
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None, keyword
        vr = pydicom.datadict.dictionary_VR(tag)
        item = pydicom.Dataset()
        if vr == "SQ":
            continue
        item.add_new(tag, vr, values.get(vr, "SOMEONE"))
        _, direct = header(make_dicom(PICTURE, **{keyword: item[tag].value}))
        _, nested = header(make_dicom(PICTURE, RequestAttributesSequence=[item]))
        assert direct == nested == (f"{kind} filled in",), keyword
    assert len(KINDS) == sum(len(keywords.split()) for keywords in IDENTIFIERS.values())


@pytest.mark.parametrize("value", ["", " ", "Anonymized", "^", "None"])
def test_an_emptied_field_raises_nothing(make_dicom: Any, value: str) -> None:
    assert header(make_dicom(PICTURE, PatientName=value, PatientID=value))[1] == ()


def test_names_dates_and_private_tags_off_the_list_raise_their_kind(make_dicom: Any) -> None:
    path = make_dicom(PICTURE, NameOfPhysiciansReadingStudy="A^B", StudyDate="20010203")
    ds = pydicom.dcmread(path)
    ds.private_block(0x11, "MAKER", create=True).add_new(1, "LO", "x")
    ds.save_as(path)
    assert header(path)[1] == (
        "dates filled in",
        "physician or operator filled in",
        "private tags filled in",
    )


@pytest.mark.parametrize(
    ("elements", "flag"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation YES"),
        ({"Modality": "US"}, "BurnedInAnnotation missing where text is often burnt in"),
        (
            {"ImageType": ["DERIVED", "SECONDARY"]},
            "BurnedInAnnotation missing where text is often burnt in",
        ),
        ({"RecognizableVisualFeatures": "YES"}, "RecognizableVisualFeatures YES"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, None),
    ],
)
def test_the_header_tells_of_text_and_faces_in_the_pixels(
    make_dicom: Any, elements: dict[str, Any], flag: str | None
) -> None:
    assert header(make_dicom(PICTURE, **elements))[1] == ((flag,) if flag else ())


def test_flags_are_kinds_and_hold_no_digits(shipped: Path) -> None:
    _, flags = header(shipped / "CT_small.dcm")
    assert len(flags) > 5
    assert not any(re.search(r"\d", flag) for flag in flags)
