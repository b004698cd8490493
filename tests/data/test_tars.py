"""Walking a foreign tar: what a careful reader sees, and nothing that its author wanted to happen."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest

from essa_dist.data.tars import BrokenTar, Member, split_name, walk

NAMES = ["a/0.jpg", "a/0.cls", f"{'long' * 40}/1.Mask.PNG", "a/0.jpg", "été 2.jpg", "3.txt"]


def tar_of(files: list[tuple[str, bytes]], **options: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def content(i: int) -> bytes:
    return bytes([i + 1]) * (300 * i + 100)


@pytest.fixture(params=[tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def tar(request: pytest.FixtureRequest) -> bytes:
    names = [
        name if len(name) < 100 or request.param != tarfile.USTAR_FORMAT else "b/1.mask.png" for name in NAMES
    ]
    return tar_of([(name, content(i)) for i, name in enumerate(names)], format=request.param)


def read(tar: bytes, until_broken: bool = False) -> list[Member]:
    members = []
    try:
        for member in walk(io.BytesIO(tar), lambda suffix: suffix != "txt"):
            members.append(member)
    except BrokenTar:
        if not until_broken:
            raise
    return members


def test_members_and_their_places_are_those_that_tarfile_finds(tar: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        expected = [
            (*split_name(one.name), one.offset_data, archive.extractfile(one).read())
            for one in archive
            if not one.name.endswith(".txt")
        ]
    assert [member[:4] for member in read(tar)] == expected
    assert all(tar[one.offset : one.offset + len(one.data)] == one.data for one in read(tar))
    assert len(expected) == 5


def test_a_tar_cut_anywhere_gives_what_lies_before_the_cut_and_says_so(tar: bytes) -> None:
    whole = read(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        last = archive.getmembers()[-1]
    end = -(-(last.offset_data + last.size) // 512) * 512
    for cut in range(1, end + 511, 97):
        expected = [member for member in whole if member.offset + len(member.data) <= cut]
        assert read(tar[:cut], until_broken=True) == expected
        with pytest.raises(BrokenTar):
            read(tar[:cut])
    assert read(tar[: end + 512]) == whole


def test_a_damaged_header_in_the_middle_is_no_silent_end(tar: bytes) -> None:
    second = read(tar)[1]
    damaged = bytearray(tar)
    damaged[second.offset - 512 + 100] ^= 1
    with pytest.raises(BrokenTar, match="damaged"):
        read(bytes(damaged))


def test_keys_and_suffixes_are_webdatasets() -> None:
    tariterators = pytest.importorskip("webdataset.tariterators", reason="webdataset is not installed")
    for name in [
        "a.jpg",
        "./a.b.JPG",
        "x.y/z.mask.png",
        "noext",
        ".hidden",
        "d/._a.jpg",
        "a.",
        "a b.c",
        "x/../y.jpg",
    ]:
        key, suffix = tariterators.base_plus_ext(name)
        assert split_name(name) == (None if key is None else (key, suffix.lower())), name


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pyd", "pth", "pt", "meta.pkl", "PKL"])
def test_pickles_are_refused_and_never_run(suffix: str, tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (marker,)

    (member,) = read(tar_of([(f"a.{suffix}", pickle.dumps(Malicious()))]))
    assert (member.key, member.data) == ("a", b"")
    assert "pickled" in member.refused
    assert not marker.exists()


def test_what_is_ignored_is_passed_over_in_silence() -> None:
    tar = tar_of([("a.pyd", b"x"), ("a.jpg", b"y")])
    assert [one.suffix for one in walk(io.BytesIO(tar), lambda _: True, ["pyd"])] == ["jpg"]


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "x/../../a.jpg"])
def test_names_that_lead_out_of_the_tar_are_refused(name: str) -> None:
    (member,) = read(tar_of([(name, b"x")]))
    assert "leads out" in member.refused


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    (found,) = read(buffer.getvalue())
    assert found.refused
    assert found.data == b""


def test_a_member_that_claims_more_than_memory_is_refused_before_it_is_read() -> None:
    tar = bytearray(tar_of([("a.jpg", b"x")]))
    header = tarfile.TarInfo("a.jpg")
    header.size = 1 << 62  # to skip it in blocks would take years
    tar[:512] = header.tobuf(tarfile.GNU_FORMAT)[:512]
    (member,) = read(bytes(tar), until_broken=True)
    assert "bytes" in member.refused


def test_a_member_of_negative_size_ends_the_walk() -> None:
    tar = bytearray(tar_of([("a.jpg", b"x" * 600), ("b.jpg", b"y")]))
    header = tarfile.TarInfo("a.jpg")
    header.size = -512
    tar[:512] = header.tobuf(tarfile.GNU_FORMAT)[:512]
    with pytest.raises(BrokenTar, match="negative"):
        read(bytes(tar))


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"])
def test_compressed_tars_are_told_as_such(start: bytes) -> None:
    with pytest.raises(BrokenTar, match=r"compressed .*unpack"):
        read(start + bytes(600))


@pytest.mark.parametrize(("tar", "reason"), [(b"", "empty file"), (b"text " * 200, "damaged")])
def test_what_is_no_tar_is_said(tar: bytes, reason: str) -> None:
    with pytest.raises(BrokenTar, match=reason):
        read(tar)
