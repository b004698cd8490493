"""What a DICOM header tells of the picture, and which identifiers it still holds.

Nothing is copied but an allow-list of fields; of identifiers only the kind is named.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from essa_dist.packing.readers.values import refuse_special

About = dict[str, str | int | float]

CODES = {
    "Modality": "modality",
    "BodyPartExamined": "body_part",
    "ViewPosition": "view",
    "Laterality": "laterality",
    "ImageLaterality": "laterality",
    "PatientOrientation": "orientation",
    "PhotometricInterpretation": "photometric",
}
"""Fields of text that go into ``about``, and their names there. The maker and model of the device stay out: they are
free text, and where few have that device they name the site."""
_CODE = re.compile(r"[A-Z0-9][A-Z0-9_ ]{0,15}")

# After the attributes of the basic profile of DICOM PS3.15, table E.1-1, that say who, where and when. UIDs are left
# out: every file has them, and their value doesn't tell whether they were replaced.
IDENTIFIERS = {
    "patient's name": "PatientName OtherPatientNames PatientBirthName PatientMotherBirthName ResponsiblePerson",
    "patient's identifier": "PatientID OtherPatientIDs IssuerOfPatientID MedicalRecordLocator"
    " InsurancePlanIdentification",
    "birth date": "PatientBirthDate PatientBirthTime",
    "patient's address or telephone": "PatientAddress PatientTelephoneNumbers PatientTelecomInformation"
    " CountryOfResidence RegionOfResidence MilitaryRank BranchOfService ResponsibleOrganization",
    "patient's age, sex or size": "PatientAge PatientSex PatientSize PatientWeight EthnicGroup",
    "patient's history": "AdditionalPatientHistory MedicalAlerts Allergies Occupation PregnancyStatus PatientState"
    " SpecialNeeds PatientReligiousPreference SmokingStatus LastMenstrualDate",
    "institution": "InstitutionName InstitutionAddress InstitutionalDepartmentName CurrentPatientLocation"
    " PatientInstitutionResidence",
    "physician or operator": "ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers",
    "accession or study number": "AccessionNumber StudyID AdmissionID RequestedProcedureID"
    " ScheduledProcedureStepID PerformedProcedureStepID PlacerOrderNumberImagingServiceRequest"
    " FillerOrderNumberImagingServiceRequest",
    "comments": "PatientComments ImageComments StudyComments VisitComments FrameComments AcquisitionComments"
    " RequestedProcedureComments ImagingServiceRequestComments CommentsOnThePerformedProcedureStep"
    " AcquisitionDeviceProcessingDescription TextComments TextString TextValue",
    "descriptions": "StudyDescription SeriesDescription ProtocolName DerivationDescription"
    " RequestedProcedureDescription PerformedProcedureStepDescription ScheduledProcedureStepDescription"
    " AdmittingDiagnosesDescription ReasonForStudy ReasonForTheRequestedProcedure",
    "device or station": "StationName DeviceSerialNumber DetectorID PlateID CassetteID GantryID",
}
_BY_TYPE = {"PN": "physician or operator", "DA": "dates", "DT": "dates"}
"""Kinds of what no list above names: any other name of a person, any other date."""
_EMPTY = {
    "",
    "ANON",
    "ANONYMOUS",
    "ANONYMIZED",
    "ANONYMISED",
    "NONE",
    "UNKNOWN",
    "REMOVED",
    "N/A",
    "NA",
    "000000",
}
"""Values that tell nobody, in capitals."""
_TEXT_IN_PIXELS = ("US", "ES", "XC", "GM", "OT", "SC", "IVUS", "OP", "DG")
"""Modalities that often have text in their pixels. Source: DICOM PS3.15, E.3.1, on cleaning pixel data."""
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, and its multi-frame kinds


def about_picture(ds: Any) -> About:
    """The allowed fields of a header, the same for all frames."""
    about: About = {}
    for keyword, name in CODES.items():
        code = code_of(ds, keyword)
        if code:
            about.setdefault(name, code)
    for keyword, name in {"Rows": "rows", "Columns": "columns", "BitsStored": "bits_stored"}.items():
        value = ds.get(keyword)
        if isinstance(value, int):
            about[name] = value
    uid = ds.file_meta.get("TransferSyntaxUID")
    if uid is not None and uid.is_transfer_syntax:  # its registered name: a standard's, never a site's
        about["transfer_syntax"] = str(uid.name)
    return about


def about_frame(ds: Any, measures: Any) -> About:
    """Spacing in mm; ``measures``: of the frame, in an enhanced file."""
    about: About = {}
    spacing = None
    for source, keyword in ((measures, "PixelSpacing"), (ds, "PixelSpacing"), (ds, "ImagerPixelSpacing")):
        spacing = spacing or numbers(source, keyword)
    if spacing and len(spacing) == 2 and min(spacing) > 0:  # between rows first: PS3.3, 10.7.1.3
        about["spacing_y_mm"], about["spacing_x_mm"] = spacing
    thickness = numbers(measures, "SliceThickness") or numbers(ds, "SliceThickness")
    if thickness:
        about["slice_mm"] = thickness[0]
    return about


def flags_of(ds: Any) -> tuple[str, ...]:
    """Kinds of identifiers that are filled in, and what the header says of text and faces in the pixels."""
    found = {f"{kind} filled in" for kind in _kinds(ds)}
    burnt = str(ds.get("BurnedInAnnotation", "") or "").upper()
    captured = "SECONDARY" in _words(ds, "ImageType") or str(ds.get("SOPClassUID", "")).startswith(_CAPTURE)
    if burnt == "YES":
        found.add("BurnedInAnnotation YES")
    elif burnt != "NO" and (captured or str(ds.get("Modality", "")) in _TEXT_IN_PIXELS):
        found.add("BurnedInAnnotation missing where text is often burnt in")
    if str(ds.get("RecognizableVisualFeatures", "") or "").upper() == "YES":
        found.add("RecognizableVisualFeatures YES")
    return tuple(sorted(found))


def patient_of(path: Path) -> str | None:
    """PatientID of a DICOM file, to group its pictures by; None: none, or no DICOM. Reads no further than that."""
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    wanted = Tag("PatientID")
    try:
        refuse_special(path)
        with path.open("rb") as file:
            ds = read_partial(
                file,
                stop_when=lambda tag, vr, length: tag > wanted,
                force=True,
                specific_tags=[wanted],
            )
        return str(ds.get("PatientID", "") or "").strip() or None
    except Exception:  # whatever is wrong with it, the reader will say it
        return None


def code_of(ds: Any, keyword: str) -> str | None:
    """A code string; None where it is none, or holds a word of the patient's name or identifier."""
    value = "/".join(_words(ds, keyword))
    if not all(_CODE.fullmatch(word) for word in value.split("/")):
        return None
    own = {
        word
        for key in ("PatientName", "PatientID", "OtherPatientIDs", "AccessionNumber")
        for word in re.split(r"\W+", str(ds.get(key, "") or "").upper())
        if len(word) > 2
    }
    return None if own & set(re.split(r"[\W_]+", value)) else value


def numbers(ds: Any, keyword: str) -> list[float]:
    """The numbers of an element; empty where it is missing, empty or no number."""
    try:
        value: Any = None if ds is None else ds.get(keyword)
        if isinstance(value, bytes):  # of unknown type, and so not converted
            value = value.decode("ascii", "replace").strip(" \0").split("\\")
        if value is None or isinstance(value, str):
            value = [value] if value else []
        several = value if hasattr(value, "__iter__") else [value]
        return [float(one) for one in several]
    except (TypeError, ValueError):
        return []


def _words(ds: Any, keyword: str) -> list[str]:
    value = ds.get(keyword)
    several = [] if value is None else [value] if isinstance(value, str) else list(value)
    return [str(word).strip().upper() for word in several]


def _kinds(ds: Any, depth: int = 0) -> Iterator[str]:
    """Kinds of the filled elements, from raw ones: to convert each would take most of the time of a small file."""
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    for tag in ds.keys():  # noqa: SIM118 (iterating over a Dataset itself converts every element)
        raw = ds.get_item(tag, keep_deferred=True)  # large pixels stay in the file
        keyword = keyword_for_tag(tag)
        vr = raw.VR or (dictionary_VR(tag) if keyword else "UN")
        if vr == "SQ" and not tag.is_private:
            # Of many items the first two tell; those of single frames hold no more than times.
            if depth < 4 and keyword != "PerFrameFunctionalGroupsSequence":
                for item in _items(ds, tag)[:2]:
                    yield from _kinds(item, depth + 1)
            continue
        kind = "private tags" if tag.is_private else KINDS.get(keyword, _BY_TYPE.get(vr))
        if kind is not None and _filled(raw.value):
            yield kind


KINDS = {keyword: kind for kind, keywords in IDENTIFIERS.items() for keyword in keywords.split()}


def _items(ds: Any, tag: Any) -> list[Any]:
    try:
        return list(ds[tag].value or [])
    except Exception:  # a broken sequence tells nothing
        return []


def _filled(value: Any) -> bool:
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value[:64]).decode("latin-1")
    text = str(value if value is not None else "").strip(" \0^=").upper()
    return text not in _EMPTY
