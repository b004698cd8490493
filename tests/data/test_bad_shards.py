"""Bad shards and bad samples, indexed or streamed: counted, named, kept within a quota, then one clear error."""

import gzip
import io
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essa_dist.data.index import read_index
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.quota import BadQuota
from essa_dist.data.shards import open_packed
from essa_dist.data.stream import StreamConfig, open_stream
from essa_dist.data.stream_loader import StreamLoader
from essa_dist.data.views import CropConfig
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.foreign import IndexConfig, index

CROPS = CropConfig(policy="medical", global_size=16, local_size=8, n_local=1)
DEADLINE_S = 120
GOOD = 6
Tar = list[tuple[str, bytes]]


def jpeg(seed: int, kind: str = "JPEG") -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((24, 20), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tar_of(files: Tar) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def with_link(files: Tar) -> bytes:
    buffer = io.BytesIO(tar_of(files))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        link = tarfile.TarInfo("bad.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


class Malicious:
    """Unpickled, it makes a file."""

    marker = Path()

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


SAMPLE: Tar = [(f"{i}.jpg", jpeg(i)) for i in range(3)]
BAD: dict[str, tuple[Callable[[], bytes], str, str]] = {
    # content of the second tar; where the fault is; what is said of it
    "truncated tar": (lambda: tar_of(SAMPLE)[:1400], "bad.tar", "cut off|unexpected end"),
    "zero-length tar": (lambda: b"", "bad.tar", "empty file"),
    "no tar": (lambda: b"some text " * 99, "bad.tar", "damaged"),
    "compressed under the name of a tar": (lambda: gzip.compress(tar_of(SAMPLE)), "bad.tar", "compressed"),
    "tar without images": (lambda: tar_of([("README.txt", b"hello")]), "bad.tar", "no images"),
    "zero-length member": (lambda: tar_of([*SAMPLE, ("bad.jpg", b"")]), "bad.tar:bad", "empty file"),
    "image cut off": (lambda: tar_of([*SAMPLE, ("bad.jpg", jpeg(9)[:-60])]), "bad.tar:bad", "truncated"),
    "flipped bytes": (
        lambda: tar_of([*SAMPLE, ("bad.jpg", jpeg(9)[:20] + b"\xff" * 40 + jpeg(9)[60:])]), "bad.tar:bad", ""),
    "text called jpg": (lambda: tar_of([*SAMPLE, ("bad.jpg", b"hello " * 99)]), "bad.tar:bad", "not an image"),
    "duplicate key": (lambda: tar_of([*SAMPLE, ("bad.jpg", jpeg(7)), ("bad.jpg", jpeg(8))]), "bad.tar:bad", "duplicate"),
    "pickle": (
        lambda: tar_of([*SAMPLE, ("bad.jpg", jpeg(9)), ("bad.pkl", pickle.dumps(Malicious()))]), "bad.tar:bad", "pickled"),
    "link": (lambda: with_link(SAMPLE), "bad.tar:bad", "link"),
    "path out of the tar": (lambda: tar_of([*SAMPLE, ("../bad.jpg", jpeg(9))]), "bad.tar:../bad", "leads out"),
    "decompression bomb": (lambda: tar_of([*SAMPLE, ("bad.png", bomb())]), "bad.tar:bad", "pixels"),
}  # fmt: skip


@pytest.fixture(params=BAD)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    """A folder of a good and a bad tar, where the fault is and what is to be said of it."""
    Malicious.marker = tmp_path / "marker"
    make, where, reason = BAD[request.param]
    (tmp_path / "t").mkdir()
    (tmp_path / "t/good.tar").write_bytes(tar_of([(f"g{i}.jpg", jpeg(20 + i)) for i in range(GOOD)]))
    (tmp_path / "t/bad.tar").write_bytes(make())
    return tmp_path / "t", where, reason


def stream_loader(
    folder: Path, workers: int = 0, quota: BadQuota | None = None, **settings: int
) -> StreamLoader:
    config = DataConfig(crops=CROPS, workers=workers, bad_sample_quota=quota or BadQuota())
    stream = open_stream(str(folder), StreamConfig(shuffle=4))
    return StreamLoader(stream, config, **{"seed": 0, "global_batch": 4, "patch_size": 8, **settings})


def test_an_index_leaves_out_what_is_bad_and_names_it(case, caplog: pytest.LogCaptureFixture) -> None:
    folder, where, reason = case
    result = index(IndexConfig(src=str(folder), workers=1))
    listed = (folder / "quarantine.csv").read_text().splitlines()[1:]
    assert len(listed) == sum(result["skipped"].values()) == 1
    assert listed[0].startswith(f"{where},")
    assert f"left out {where}: " in caplog.text
    if reason:
        assert any(word in listed[0] for word in reason.split("|"))
    images = open_packed(str(folder))
    assert {f"g{i}" for i in range(GOOD)} <= set(images.keys)
    assert "bad" not in images.keys
    for i in range(len(images)):
        images.decode(i)
    assert not Malicious.marker.exists()


def test_beyond_the_quota_an_index_is_one_clear_error(case) -> None:
    folder, where, _ = case
    with pytest.raises(DataError, match="can't be used, 0 are allowed; first") as caught:
        index(IndexConfig(src=str(folder), workers=1, quota=BadQuota(count=0)))
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "manifest.json").exists()
    assert (folder / "quarantine.csv").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_leaves_out_what_is_bad_and_goes_on(
    case, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder, where, reason = case
    loader = stream_loader(folder, workers)
    batches = list(loader.batches(0, 12))
    assert [batch.step for batch in batches] == list(range(12))
    assert [len(batch.keys) for batch in batches] == [4] * 12
    assert loader.bad == (f"{folder}/{where}",)
    assert sum(batch.bad == loader.bad for batch in batches) == 1
    (told,) = [record.message for record in caplog.records if "left out" in record.message]
    assert not reason or any(word in told for word in reason.split("|"))
    assert not any("bad" in key for batch in batches for key in batch.keys)
    assert not Malicious.marker.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_beyond_the_quota_a_stream_is_one_clear_error(case, workers: int) -> None:
    folder, where, _ = case
    loader = stream_loader(folder, workers, BadQuota(count=0, fraction=0))
    with pytest.raises(DataError, match="can't be used, 0 are allowed; first") as caught:
        list(loader.batches(0, 50))
    assert f"{folder}/{where}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_of([("a.jpg", jpeg(0, "PNG")), ("b.png", jpeg(1)), ("c.jpg", jpeg(2, "WEBP"))])
    )
    assert index(IndexConfig(src=str(tmp_path), workers=1))["skipped"] == {}
    assert stream_loader(tmp_path).bad == ()
    assert len(list(stream_loader(tmp_path).batches(0, 3))) == 3


def test_a_label_without_an_image_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_of([("a.jpg", jpeg(0)), ("a.cls", b"0"), ("b.cls", b"1"), ("c.json", b"{}")])
    )
    assert index(IndexConfig(src=str(tmp_path), workers=1))["skipped"] == {"no image": 2}


@pytest.mark.parametrize("label", [b"\xff\xfe", b"", b"x" * 99])
def test_a_label_that_is_none_is_left_out(tmp_path: Path, label: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_of([("a.jpg", jpeg(0)), ("a.cls", b"0"), ("b.jpg", jpeg(1)), ("b.cls", label)])
    )
    (reason,) = index(IndexConfig(src=str(tmp_path), workers=1))["skipped"]
    assert "cls" in reason or "label" in reason


def test_images_of_other_kinds_name_their_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([("a.tif", jpeg(0)), ("b.dcm", b"x")]))
    with pytest.raises(DataError, match=r"no usable sample.*unpack the tar and use `essa pack`"):
        index(IndexConfig(src=str(tmp_path), workers=1))


NO_IMAGE = "not an image of a known kind (jpg, png, webp)"


def test_a_header_check_finds_what_headers_tell_and_no_more(tmp_path: Path) -> None:
    files = [("bad.jpg", b"text"), *((f"{i}.jpg", jpeg(i)) for i in range(3)), ("z.jpg", jpeg(9)[:-60])]
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    assert index(IndexConfig(src=str(tmp_path), workers=1, check="header"))["skipped"] == {NO_IMAGE: 1}


def test_pipes_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(SAMPLE))
    url = f"pipe:touch {tmp_path}/ran; cat {tmp_path}/a.tar"
    for use in (lambda: index(IndexConfig(src=url)), lambda: open_stream(url)):
        with pytest.raises(UsageError, match="pipe: URL runs a command"):
            use()
    assert not (tmp_path / "ran").exists()
    config = DataConfig(crops=CROPS, workers=0)
    loader = StreamLoader(
        open_stream(url, StreamConfig(allow_pipe=True)), config, seed=0, global_batch=2, patch_size=8
    )
    assert {key for batch in loader.batches(0, 9) for key in batch.keys} == {"0", "1", "2"}
    assert (tmp_path / "ran").exists()


def test_a_stream_of_nothing_usable_ends(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.tar").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 2 tars"):
        list(stream_loader(tmp_path).batches(0, 1))
    for i in range(2):
        (tmp_path / f"{i}.tar").write_bytes(tar_of([("a.jpg", b"text")]))
    with pytest.raises(DataError, match="samples in a row can't be decoded"):
        list(stream_loader(tmp_path).batches(0, 1))


def test_a_stream_does_not_search_on_for_one_good_image_among_many_bad(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_of([*((f"{i}.jpg", b"text") for i in range(200)), ("good.jpg", jpeg(0))])
    )
    loader = stream_loader(tmp_path)
    with pytest.raises(DataError, match="11 of the 11 samples read can't be used, 10 are allowed"):
        list(loader.batches(0, 1))


def test_a_tar_that_vanishes_from_a_stream_is_left_out(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.tar").write_bytes(tar_of(SAMPLE))
    loader = stream_loader(tmp_path)
    batches = loader.batches(0, 30)
    next(batches)
    (tmp_path / "1.tar").unlink()
    assert len(list(batches)) == 29
    assert loader.bad == (f"{tmp_path}/1.tar",)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Two uneven tars with an index, twelve images."""
    folder = tmp_path / "packed"
    folder.mkdir()
    for name, count in (("0", 3), ("1", 9)):
        (folder / f"{name}.tar").write_bytes(
            tar_of([(f"{name}{i}.jpg", jpeg(10 * int(name) + i)) for i in range(count)])
        )
    index(IndexConfig(src=str(folder), workers=1))
    return folder


@pytest.mark.parametrize("harm", ["vanished", "truncated"])
def test_a_packed_tar_lost_in_mid_run_is_one_clear_error(packed: Path, harm: str) -> None:
    loader = CropLoader(open_packed(str(packed)), DataConfig(crops=CROPS, workers=1, prefetch=1), seed=0, global_batch=4, patch_size=8)  # fmt: skip
    batches = loader.batches(0, 100)
    next(batches)
    if harm == "vanished":
        images = open_packed(str(packed))
        (packed / "1.tar").unlink()
        loader = CropLoader(images, DataConfig(crops=CROPS, workers=0), seed=0, global_batch=4, patch_size=8)
        batches = loader.batches(0, 100)
    else:
        os.truncate(packed / "1.tar", 100)
    with pytest.raises(DataError, match=r"1\.tar") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


RANK = """
import json, os, sys
import torch, torch.distributed as dist
import essa_dist
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.shards import open_packed
from essa_dist.data.stream import StreamConfig, open_stream
from essa_dist.data.stream_loader import StreamLoader
from essa_dist.data.views import CropConfig

folder, foreign = sys.argv[1:]
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
config = DataConfig(crops=CropConfig(policy="medical", global_size=16, local_size=8, n_local=1), workers=rank)
common = dict(seed=0, global_batch=4, patch_size=8, rank=rank, world_size=world)
told = {}
for name, loader in (
    ("plan", CropLoader(open_packed(folder), config, **common)),
    ("stream", StreamLoader(open_stream(foreign, StreamConfig(shuffle=3)), config, **common)),
):
    steps, met, seen = [], 0, []
    for batch in loader.batches(0, 10):
        total = torch.tensor(float(len(batch.keys)))
        dist.all_reduce(total)  # waits for the other rank: a rank that is short hangs here
        steps.append([batch.step, total.item()])
        met += len(batch.bad)
        seen += batch.keys
    told[name] = {"steps": steps, "bad": met, "keys": seen}
print(json.dumps(told), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def test_ranks_make_equal_steps_whatever_is_bad_on_one_of_them(
    packed: Path, tmp_path: Path, free_port: int
) -> None:
    found = read_index(packed)
    for i in (1, 4, 5, 6):
        with (packed / f"{found.key[i][0]}.tar").open("r+b") as file:
            file.seek(int(found.offset[i]) + 200)
            file.write(b"\0" * 50)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "small.tar").write_bytes(
        tar_of([("one.jpg", jpeg(1)), *((f"b{i}.jpg", b"text") for i in range(5))])
    )
    (foreign / "large.tar").write_bytes(tar_of([(f"l{i}.jpg", jpeg(i)) for i in range(30)]))
    (foreign / "cut.tar").write_bytes(tar_of(SAMPLE)[:2600])
    launched = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(packed), str(foreign)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [json.loads(process.communicate(timeout=DEADLINE_S)[0]) for process in launched]
    finally:
        for process in launched:
            process.kill()
    for order in ("plan", "stream"):
        assert [one[order]["steps"] for one in told] == [[[step, 4.0] for step in range(10)]] * 2
        assert sum(one[order]["bad"] for one in told) > 0
    assert told[0]["plan"]["bad"] != told[1]["plan"]["bad"]
    assert told[0]["stream"]["keys"] != told[1]["stream"]["keys"]


def test_the_stream_says_once_that_its_resume_is_approximate(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    stream_loader(packed, workers=2, world_size=2)
    stream_loader(packed, rank=1, world_size=2)
    (told,) = [record.message for record in caplog.records]
    assert "a resumed run draws anew" in told
    assert "4 workers share 2 tars" in told
