"""The reader is chosen by content, and a folder walk knows what to look at."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from essa_dist.packing.readers import READERS, ReadConfig, kind_of, looks_like_image, read_frames

pydicom = pytest.importorskip("pydicom")


def first_pixels(path: Path) -> Any:
    return next(read_frames(path, ReadConfig())).pixels


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "WEBP", "TIFF"])
def test_the_name_of_a_file_says_nothing(tmp_path: Path, suffix: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    path = tmp_path / "wrong.dcm"
    Image.fromarray(picture).save(path, suffix, **({"lossless": True} if suffix == "WEBP" else {}))
    np.testing.assert_array_equal(first_pixels(path), picture)


@pytest.mark.parametrize(
    "name", ["ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm", "no_meta_group_length.dcm"]
)
def test_dicom_without_a_preamble_is_known(shipped: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "IM0001"
    shutil.copy(shipped / name, path)
    assert looks_like_image(path)
    assert kind_of(path.read_bytes()[:560]) == "dicom"


def test_dicom_without_preamble_and_suffix_has_the_same_pixels(shipped: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(shipped / "MR_small.dcm")
    expected = first_pixels(shipped / "MR_small.dcm")
    for syntax, implicit, little in (("e", False, True), ("i", True, True), ("b", False, False)):
        bare = tmp_path / f"1.2.{syntax}"
        source = {"e": "MR_small", "i": "MR_small_implicit", "b": "MR_small_bigendian"}[syntax]
        ds = pydicom.dcmread(shipped / f"{source}.dcm")
        with bare.open("wb") as file:
            pydicom.dcmwrite(file, pydicom.Dataset(ds), implicit_vr=implicit, little_endian=little)
        assert b"DICM" not in bare.read_bytes()[:200]
        np.testing.assert_array_equal(first_pixels(bare), expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + b"\0" * 600,
        b"path,label\na.png,cat\n" * 40,
        gzip.compress(b"not a volume" * 100),
        b"GIF89a" + b"\0" * 600,
        b"\x1f\x8b broken",
        b"\0" * 700,
        b"\x08\0",
        b"%PDF-1.7" + b" " * 600,
    ],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^(not an image of a known format|empty file)$"):
        first_pixels(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "dicom"])
def test_a_file_cut_anywhere_is_refused_in_one_line_or_read(tmp_path: Path, kind: str, shipped: Path) -> None:
    whole = tmp_path / "whole"
    if kind == "dicom":
        shutil.copy(shipped / "MR_small_jp2klossless.dcm", whole)
    else:
        noise = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(whole, kind)
    data = whole.read_bytes()
    path = tmp_path / "cut"
    reasons = []
    for length in range(1, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        try:
            first_pixels(path)
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) >= 30
    assert all(reason and "\n" not in reason for reason in reasons)


def test_a_walk_takes_images_and_nameless_dicom_and_no_directory(tmp_path: Path, shipped: Path) -> None:
    for name in ("IM0001", "1.2.840.113", "DICOMDIR", ".IM2"):
        shutil.copy(shipped / "MR_small.dcm", tmp_path / name)
    for name in ("a.png", "b.NII.GZ", "c.IMA", "d.svs", "labels.csv", "notes", "e.dcm.part"):
        (tmp_path / name).write_bytes(b"text\n" * 200)
    taken = {path.name for path in tmp_path.iterdir() if looks_like_image(path)}
    assert taken == {"IM0001", "1.2.840.113", "a.png", "b.NII.GZ", "c.IMA", "d.svs"}


def test_every_reader_named_can_be_imported() -> None:
    import importlib

    for reader in READERS.values():
        module, function = reader.where.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_missing_file_is_no_broken_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        first_pixels(tmp_path / "none.png")
