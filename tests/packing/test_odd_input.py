"""What nobody expects in a folder or a list: it is left out or refused in one line, and nothing is lost."""

import csv
import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from essa_dist.data.index import NONE
from essa_dist.data.shards import open_packed
from essa_dist.errors import UsageError
from essa_dist.packing.journal import Journal
from essa_dist.packing.lock import clean_up, locked, partial_folder
from essa_dist.packing.pack import PackConfig, pack

ImageFolder = Callable[..., Path]


def packed(src: Path, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    fields = {"src": str(src), "out": str(tmp_path / "out"), "report": False, **settings}
    return pack(PackConfig.model_validate(fields))


def quarantine(tmp_path: Path) -> dict[str, str]:
    with (tmp_path / "out" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["pipe.png", "pipe.dcm", "pipe"])
def test_a_pipe_is_not_waited_for(image_folder: ImageFolder, tmp_path: Path, name: str) -> None:
    source = image_folder({"a": 2})
    os.mkfifo(source / "a" / name)
    assert packed(source, tmp_path)["samples"] == 2
    if "." in name:
        assert quarantine(tmp_path) == {f"a/{name}": "not an ordinary file"}


def test_neither_is_one_in_the_place_of_a_mask(image_folder: ImageFolder, tmp_path: Path) -> None:
    source = image_folder({"images": 2, "masks": 1})
    (source / "masks" / "0.png").unlink()
    os.mkfifo(source / "masks" / "1.png")
    packed(source, tmp_path)
    assert quarantine(tmp_path)["images/1.png"] == "its mask: not an ordinary file"


def test_a_picture_that_no_decoder_opens_is_told_in_words(image_folder: ImageFolder, tmp_path: Path) -> None:
    source = image_folder({"a": 2})
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (source / "a" / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    (source / "a" / "stub.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    packed(source, tmp_path)
    assert quarantine(tmp_path) == {"a/huge.png": "not an image", "a/stub.jpg": "not an image"}


def test_names_in_any_bytes_are_packed_and_written_as_text(image_folder: ImageFolder, tmp_path: Path) -> None:
    source = image_folder({"a": 2})
    names = [b"\xff\xfe.png", b"new\nline.png", b"co:lon.png", b"quo'te\".png", "ümlaut 中.png".encode()]
    picture = (source / "a" / "0.png").read_bytes()
    folder = os.fsencode(source) + b"/b\xe9"
    os.mkdir(folder)
    for name in names:
        with open(folder + b"/" + name, "wb") as file:
            file.write(picture)
    with open(folder + b"/bad\xfa.png", "wb") as file:
        file.write(b"no picture")
    packed(source, tmp_path)
    images = open_packed(str(tmp_path / "out"))
    assert images.manifest.classes == ("a", "b\\xe9")
    stems = {"\\xff\\xfe", "new\nline", "co:lon", "quo'te\"", "ümlaut 中"}
    assert {key.removeprefix("b\\xe9/") for key in images.keys if key.startswith("b")} == stems
    assert quarantine(tmp_path) == {"b\\xe9/bad\\xfa.png": "not an image of a known format"}
    assert all(images.read(i) for i in range(len(images)))


def test_a_sample_without_labels_in_a_list_of_several_is_unlabelled(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    image_folder({"": 3})
    (tmp_path / "list.csv").write_text("path,labels\nimages/0.png,A|B\nimages/1.png,\nimages/2.png,B\n")
    assert packed(tmp_path / "list.csv", tmp_path)["counts"] == {
        "train": {"A": 1, "B": 2},
        "unlabelled": {"A": 0, "B": 0, "unlabelled": 1},
    }
    index = open_packed(f"{tmp_path / 'out'}:unlabelled").index
    assert index.labels is not None
    assert index.labels.tolist() == [[NONE, NONE]]


def test_files_that_hold_no_pictures_do_not_count_against_the_quota(
    image_folder: ImageFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pydicom = pytest.importorskip("pydicom")
    source = image_folder({"a": 2})
    for i in range(30):
        report = pydicom.Dataset()
        report.SOPClassUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.33", "SR"
        report.preamble, report.file_meta = b"\0" * 128, pydicom.dataset.FileMetaDataset()
        report.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        report.save_as(source / "a" / f"{i:02d}.dcm", enforce_file_format=False)
    with caplog.at_level(logging.INFO):
        result = packed(source, tmp_path, quota={"count": 0, "fraction": 0})
    assert result["samples"] == 2
    assert result["skipped"] == {"DICOM without pixels (SR)": 30}
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 21  # twenty of them, and where to find the others
    assert "quarantine.csv" in said[-1]


def test_headers_are_read_without_a_word_of_the_library(
    image_folder: ImageFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file whose elements are implicit after a header that says explicit makes pydicom warn."""
    pydicom = pytest.importorskip("pydicom")
    logging.getLogger("pydicom").setLevel(logging.NOTSET)
    source = image_folder({"a": 2})
    meta = pydicom.filebase.DicomBytesIO()
    meta.is_little_endian, meta.is_implicit_VR = True, True
    data = pydicom.Dataset()
    data.PatientID = "7"
    pydicom.filewriter.write_dataset(meta, data)
    header = b"\0" * 128 + b"DICM" + b"\x02\0\x00\0UL\x04\0" + struct.pack("<I", 28)
    header += b"\x02\0\x10\0UI" + struct.pack("<H", 20) + b"1.2.840.10008.1.2.1\0"
    (source / "a" / "x.dcm").write_bytes(header + meta.getvalue())
    with caplog.at_level(logging.INFO):
        packed(source, tmp_path)
    assert [record for record in caplog.records if record.name.startswith("pydicom")] == []
    assert any("1 patients by the headers" in record.getMessage() for record in caplog.records)


def test_overwrite_replaces_a_packed_set_and_deletes_nothing_else(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    source = image_folder({"a": 3})
    packed(source, tmp_path)
    for strange in ("notes.txt", "foreign.tar", "folder"):
        path = tmp_path / "out" / strange
        path.mkdir() if strange == "folder" else path.write_text("precious")
        with pytest.raises(UsageError, match=rf"holds {strange} beside a packed set"):
            packed(source, tmp_path, overwrite=True)
        assert path.exists()
        path.rmdir() if strange == "folder" else path.unlink()
    assert packed(source, tmp_path, overwrite=True, report=True)["samples"] == 3
    assert packed(source, tmp_path, overwrite=True)["samples"] == 3


def test_a_kill_after_the_last_rename_leaves_nothing_behind_for_long(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder({"a": 3})
    monkeypatch.setattr("essa_dist.packing.journal.shutil.rmtree", _killed)
    monkeypatch.setattr("essa_dist.packing.lock.shutil.rmtree", _killed)
    with pytest.raises(KeyboardInterrupt):
        packed(source, tmp_path)
    monkeypatch.undo()
    assert partial_folder(tmp_path / "out").exists()
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        packed(source, tmp_path)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def test_a_kill_between_the_renames_loses_neither_the_old_set_nor_the_new(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder({"a": 3})
    packed(source, tmp_path)
    old = contents(tmp_path / "out")
    (source / "a" / "2.png").unlink()
    monkeypatch.setattr("essa_dist.packing.journal.Journal.move_into_place", _half_moved)
    with pytest.raises(KeyboardInterrupt):
        packed(source, tmp_path, overwrite=True)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    with locked(tmp_path / "out"):
        assert contents(tmp_path / "out") == old
    assert packed(source, tmp_path, overwrite=True)["samples"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def test_cleaning_up_leaves_a_pack_that_runs_or_was_broken_off_in_peace(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with locked(out):
        clean_up(out)
        assert (partial_folder(out) / "lock").exists()
    (partial_folder(out) / "set").mkdir(parents=True)
    clean_up(out)
    assert (partial_folder(out) / "set").exists()


def test_a_folder_around_the_data_set_is_told_from_a_class(
    image_folder: ImageFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = image_folder({"all/train/cat": 1, "all/test/cat": 1})
    with caplog.at_level(logging.INFO):
        packed(source, tmp_path)
    assert (
        f"{source / 'all'} is taken for the only class; if it is none: essa pack {source / 'all'}"
        in caplog.text
    )


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _half_moved(self: Journal, out: Path) -> None:
    out.rename(self.folder / "replaced")
    raise KeyboardInterrupt
