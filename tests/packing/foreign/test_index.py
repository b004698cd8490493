"""An index for tars that stay as they are: the same images, labels and bytes, whoever wrote the tars."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from essa_dist.data.index import read_index
from essa_dist.data.manifest import read_manifest
from essa_dist.data.shards import open_packed
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.config import PackConfig
from essa_dist.packing.foreign import IndexConfig, index, indexing, scanning
from essa_dist.packing.guards import read_findings
from essa_dist.packing.lock import lock
from essa_dist.packing.pack import pack

WriteTar = Callable[..., Path]
Picture = Callable[..., bytes]


def indexed(src: Path, **settings: object) -> dict[str, object]:
    return index(IndexConfig.model_validate({"src": str(src), "workers": 1, "report": False, **settings}))


def digest(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.fixture
def folder(write_tar: WriteTar) -> Path:
    """Two uneven tars of two splits."""
    write_tar("t/train-0.tar", {"a.jpg": 0, "a.cls": "dog", "b.png": 1, "b.cls": "cat"})
    write_tar("t/train-1.tar", {"c.jpg": 2, "c.cls": "cat"})
    return write_tar("t/val-0.tar", {"d.jpg": 3, "d.cls": "cat", "e.jpg": 4, "e.cls": "dog"}).parent


def test_images_read_through_the_index_are_those_of_the_tars_which_stay_as_they_are(folder: Path) -> None:
    tars = sorted(folder.glob("*.tar"))
    before = digest(*tars)
    indexed(folder)
    assert digest(*tars) == before
    seen = {}
    for split in ("train", "val"):
        images = open_packed(f"{folder}:{split}")
        seen |= {images.keys[i]: images.decode(i) for i in range(len(images))}
    for tar in tars:
        with tarfile.open(tar) as archive:
            for member in archive:
                if member.name.endswith(("jpg", "png")):
                    with Image.open(io.BytesIO(archive.extractfile(member).read())) as image:
                        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
                    assert torch.equal(seen.pop(member.name[:1]), expected)
    assert seen == {}


def test_labels_splits_counts_and_hashes_are_in_the_manifest(folder: Path) -> None:
    indexed(folder, licence="CC0", name="pets")
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.licence, manifest.label_kind) == ("pets", "CC0", "single")
    assert manifest.classes == ("cat", "dog")
    assert manifest.counts == {"train": {"cat": 2, "dog": 1}, "val": {"cat": 1, "dog": 1}}
    assert [shard.file for shard in manifest.shards] == ["train-0.tar", "train-1.tar", "val-0.tar"]
    assert [shard.sha256 for shard in manifest.shards] == digest(*sorted(folder.glob("*.tar")))
    train = open_packed(f"{folder}:train")
    assert dict(zip(train.keys, train.labels, strict=True)) == {"a": 1, "b": 0, "c": 0}


def test_size_and_hash_are_of_the_whole_file_whatever_lies_behind_the_end_of_the_tar(
    write_tar: WriteTar,
) -> None:
    tar = write_tar("t/x.tar", {"a.jpg": 0})
    tar.write_bytes(tar.read_bytes() + bytes(300_000))
    indexed(tar.parent)
    (shard,) = read_manifest(tar.parent).shards
    assert (shard.bytes, [shard.sha256]) == (tar.stat().st_size, digest(tar))


def test_mean_and_std_are_those_of_all_pixels(folder: Path) -> None:
    indexed(folder)
    pixels = []
    for split in ("train", "val"):
        images = open_packed(f"{folder}:{split}")
        pixels += [images.decode(i).reshape(3, -1) for i in range(len(images))]
    together = torch.cat(pixels, dim=1).double() / 255
    manifest = read_manifest(folder)
    torch.testing.assert_close(
        torch.tensor([*manifest.mean, *manifest.std]).double(),
        torch.cat([together.mean(1), together.std(1, correction=0)]),
        rtol=0,
        atol=2e-5,
    )


@pytest.mark.parametrize("check", ["pixels", "header"])
def test_processes_and_interruptions_change_no_byte(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    outs = [tmp_path / name for name in ("one", "two", "resumed")]
    indexed(folder, out=str(outs[0]), name="n", check=check)
    if check == "pixels":
        index(IndexConfig(src=str(folder), out=str(outs[1]), name="n", workers=2, report=False))
    else:
        outs[1] = outs[0]
    scan, calls = scanning.scan, []

    def killed_at_the_third(shard: str, config: IndexConfig) -> object:
        calls.append(shard)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scan(shard, config)

    monkeypatch.setattr(scanning, "scan", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        indexed(folder, out=str(outs[2]), name="n", check=check)
    indexed(folder, out=str(outs[2]), name="n", check=check)
    assert len(calls) == 4  # two were kept
    names = {"index.arrow", "manifest.json", *(["findings.json"] if check == "pixels" else [])}
    for name in names:
        assert len({(out / name).read_bytes() for out in outs}) == 1
    assert {path.name for path in outs[2].iterdir()} == names


def test_a_kept_scan_is_not_used_for_a_tar_that_has_changed_or_other_settings(
    folder: Path, write_tar: WriteTar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scan, calls = scanning.scan, []
    monkeypatch.setattr(scanning, "scan", lambda shard, config: (calls.append(shard), scan(shard, config))[1])
    monkeypatch.setattr(indexing.shutil, "rmtree", lambda _: None)
    indexed(folder, out=str(tmp_path / "out"))
    write_tar("t/train-1.tar", {"new.jpg": 9, "new.cls": "cat"})
    indexed(folder, out=str(tmp_path / "out"), overwrite=True)
    assert [Path(call).name for call in calls[3:]] == ["train-1.tar"]
    assert "new" in list(read_index(tmp_path / "out").key)
    indexed(folder, out=str(tmp_path / "out"), overwrite=True, label="none")
    assert len(calls) == 7


def test_an_index_that_is_there_is_kept_unless_overwrite_says_so(folder: Path) -> None:
    indexed(folder)
    with pytest.raises(UsageError, match="overwrite=true"):
        indexed(folder)
    indexed(folder, overwrite=True)


def test_a_folder_that_can_not_be_written_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"can't be written .*out=DIR"):
        indexed(folder, out=str(tmp_path / "file/out"))


def test_an_index_elsewhere_names_the_tars_in_full(folder: Path, tmp_path: Path) -> None:
    indexed(folder, out=str(tmp_path / "elsewhere"))
    assert all(Path(shard.file).is_absolute() for shard in read_manifest(tmp_path / "elsewhere").shards)
    assert open_packed(f"{tmp_path / 'elsewhere'}:val").decode(1).shape == (3, 10, 12)


def test_tars_behind_a_url_are_indexed_as_local_ones_are(folder: Path, tmp_path: Path) -> None:
    indexed(folder, out=str(tmp_path / "local"), name="n")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UsageError, match="out=DIR"):
            indexed(f"{url}/train-{{0,1}}.tar")
        indexed(f"{url}/{{train-0,train-1,val-0}}.tar", out=str(tmp_path / "remote"), name="n")
        server.shutdown()
    assert digest(tmp_path / "local/index.arrow") == digest(tmp_path / "remote/index.arrow")
    assert read_manifest(tmp_path / "remote").shards[2].file == f"{url}/val-0.tar"


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        ({"*-0.tar": "zero", "*": "rest"}, {"zero": 4, "rest": 1}),
        ({"train-*": "a", "val*": "b"}, {"a": 3, "b": 2}),
    ],
)
def test_splits_by_pattern(folder: Path, globs: dict[str, str], expected: dict[str, int]) -> None:
    indexed(folder, splits=globs)
    assert read_manifest(folder).samples == expected
    for split, count in expected.items():
        assert len(open_packed(f"{folder}:{split}")) == count


def test_a_tar_whose_split_nothing_tells_is_an_error(folder: Path, write_tar: WriteTar) -> None:
    write_tar("t/extra.tar", {"x.jpg": 7, "x.cls": "cat"})
    with pytest.raises(UsageError, match=r"extra\.tar: which of the splits train, val"):
        indexed(folder)


def test_one_tar_may_hold_several_splits(write_tar: WriteTar) -> None:
    splits = ["val", "train", "val", "test", "train"]
    files = {f"{i}.{kind}": i if kind == "jpg" else {"split": split, "label": i % 2, "patient": f"P{i // 2}"}
             for i, split in enumerate(splits) for kind in ("jpg", "json")}  # fmt: skip
    folder = write_tar("t/all.tar", files).parent
    indexed(folder)
    for split in set(splits):
        images = open_packed(f"{folder}:{split}")
        assert list(images.keys) == [str(i) for i, one in enumerate(splits) if one == split]
        with tarfile.open(folder / "all.tar") as tar:
            assert [images.read(i) for i in range(len(images))] == [
                tar.extractfile(f"{key}.jpg").read() for key in images.keys
            ]
        assert images.labels.tolist() == [int(key) % 2 for key in images.keys]


def test_patients_are_numbers_and_nobody_is_named_anywhere(write_tar: WriteTar, caplog) -> None:
    files = {f"{i}.{kind}": i if kind == "jpg" else {"patient": name, "split": split}
             for i, (name, split) in enumerate([("Doe", "train"), ("Roe", "train"), ("Doe", "val")])
             for kind in ("jpg", "json")}  # fmt: skip
    folder = write_tar("t/all.tar", files).parent
    indexed(folder)
    train, val = open_packed(f"{folder}:train"), open_packed(f"{folder}:val")
    assert train.patients[0] == val.patients[0] != train.patients[1]
    assert read_manifest(folder).patients == {"train": 2, "val": 1}
    assert "more than one split: 1" in caplog.text
    for path in (folder / "manifest.json", folder / "index.arrow"):
        assert b"Doe" not in path.read_bytes()


@pytest.mark.parametrize(
    ("labels", "settings", "classes", "numbers"),
    [
        (["2", "0", "10"], {}, tuple(map(str, range(11))), [2, 0, 10]),  # numbers keep their value
        (["2", "0", "1"], {"classes": ("c", "b", "a")}, ("c", "b", "a"), [2, 0, 1]),
        (["b", "a", "b"], {"classes": ("b", "a", "z")}, ("b", "a", "z"), [0, 1, 0]),
    ],
)
def test_class_numbers(write_tar: WriteTar, labels, settings, classes, numbers) -> None:
    files = [
        (f"{i}.{kind}", i if kind == "jpg" else label)
        for i, label in enumerate(labels)
        for kind in ("jpg", "cls")
    ]
    folder = write_tar("t/x.tar", files).parent
    indexed(folder, **settings)
    images = open_packed(str(folder))
    assert images.classes == classes
    assert images.labels.tolist() == numbers


@pytest.mark.parametrize(
    ("told", "settings", "expected"),
    [
        ([["b"], [], ["a", "b"]], {}, [[0, 1], [0, 0], [1, 1]]),
        ([{"a": 1, "b": -1}, {"b": 0}, {"a": None}], {}, [[1, -1], [0, 0], [-1, 0]]),
        ([[1, 0], [0, -1], [1, 1]], {"classes": ("a", "b")}, [[1, 0], [0, -1], [1, 1]]),
    ],
)
def test_several_classes_at_once(write_tar: WriteTar, told, settings, expected) -> None:
    files = [
        (f"{i}.{kind}", i if kind == "jpg" else {"findings": told[i]})
        for i in range(3)
        for kind in ("jpg", "json")
    ]
    folder = write_tar("t/x.tar", files).parent
    indexed(folder, json_labels="findings", **settings)
    images = open_packed(str(folder))
    assert images.manifest.label_kind == "multi"
    assert images.classes == ("a", "b")
    assert images.label_matrix.tolist() == expected


def test_short_texts_are_classes_and_captions_are_not(write_tar: WriteTar) -> None:
    for name, texts in (
        ("classes", ["cat", "dog"] * 20),
        ("captions", [f"a cat, number {i}" for i in range(40)]),
    ):
        files = [
            (f"{i}.{kind}", i if kind == "jpg" else text)
            for i, text in enumerate(texts)
            for kind in ("jpg", "txt")
        ]
        indexed(write_tar(f"{name}/x.tar", files).parent)
    assert read_manifest(write_tar("classes/unused", {}).parent).classes == ("cat", "dog")
    assert read_manifest(write_tar("captions/unused", {}).parent).label_kind == "none"


def test_a_few_samples_without_a_label_are_left_out_many_are_a_split(write_tar: WriteTar) -> None:
    files = [(f"{i}.{kind}", i) for i in range(6) for kind in ("jpg", "cls") if kind == "jpg" or i < 4]
    files = [(name, str(i % 2) if name.endswith("cls") else i) for name, i in files]
    folder = write_tar("t/x.tar", files).parent
    assert indexed(folder)["skipped"] == {"no label": 2}
    assert open_packed(f"{folder}:train").labels.tolist() == [0, 1, 0, 1]
    indexed(folder, overwrite=True, quota={"count": 1})
    assert list(open_packed(f"{folder}:unlabelled").keys) == ["4", "5"]
    assert open_packed(f"{folder}:train").labels.tolist() == [0, 1, 0, 1]


def test_keys_that_several_tars_use_get_the_tars_name(write_tar: WriteTar) -> None:
    write_tar("t/a/x.tar", {"0.jpg": 0, "1.jpg": 1})
    folder = write_tar("t/b/x.tar", {"0.jpg": 2}).parents[1]
    indexed(f"{folder}/*/x.tar", out=str(folder))
    assert list(read_index(folder).key) == ["a/x/0", "a/x/1", "b/x/0"]
    assert [shard.file for shard in read_manifest(folder).shards] == ["a/x.tar", "b/x.tar"]


def test_members_of_a_sample_may_be_anywhere_in_its_tar(write_tar: WriteTar) -> None:
    folder = write_tar("t/x.tar", [("1.cls", "b"), ("0.jpg", 0), ("1.jpg", 1), ("0.cls", "a")]).parent
    indexed(folder)
    images = open_packed(str(folder))
    assert {images.keys[i]: images.classes[images.labels[i]] for i in range(2)} == {"0": "a", "1": "b"}


def test_masks_of_class_numbers_belong_to_their_images(write_tar: WriteTar) -> None:
    masks = [np.random.default_rng(i).integers(0, 3, (10, 12), dtype=np.uint8) for i in range(2)]
    masks[0][0, 0] = 2
    png = [imagecodecs.png_encode(mask) for mask in masks]
    folder = write_tar(
        "t/x.tar", {"0.jpg": 0, "0.mask.png": png[0], "1.seg.png": png[1], "1.jpg": 1, "2.jpg": 2}
    ).parent
    indexed(folder)
    images = open_packed(str(folder))
    assert images.manifest.mask_classes == ("background", "1", "2")
    assert [np.array_equal(images.mask(i), masks[i]) for i in range(2)] == [True, True]
    assert images.mask(2) is None
    with pytest.raises(UsageError, match="hold 3 classes, mask_classes names 2"):
        indexed(folder, mask_classes=("no", "yes"), overwrite=True)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (np.full((10, 12), 255, np.uint8), "values up to 255"),
        (np.zeros((9, 12), np.uint8), "12x9 pixels, the image 12x10"),
        (np.zeros((10, 12, 3), np.uint8), "no 8-bit grey png"),
    ],
)
def test_masks_that_are_no_class_numbers_are_refused(write_tar: WriteTar, mask, why: str) -> None:
    folder = write_tar("t/x.tar", {"0.jpg": 0, "0.mask.png": imagecodecs.png_encode(mask), "1.jpg": 1}).parent
    (reason,) = indexed(folder)["skipped"]
    assert why in reason
    assert indexed(folder, mask=(), overwrite=True)["samples"] == 2


def test_sixteen_bits_are_kept_and_shown_between_their_percentiles(write_tar: WriteTar) -> None:
    pixels = np.random.default_rng(0).integers(1000, 3000, (40, 50), dtype=np.uint16)
    colour = np.random.default_rng(1).integers(0, 65535, (40, 50, 3), dtype=np.uint16)
    window = {"slope": 2.0, "intercept": -1024.0, "window": [0.0, 400.0]}
    folder = write_tar("t/x.tar", {"a.png": imagecodecs.png_encode(pixels), "b.png": imagecodecs.png_encode(colour),
                                   "c.png": imagecodecs.png_encode(pixels), "c.json": window, "d.jpg": 5}).parent  # fmt: skip
    for check in ("pixels", "header"):
        indexed(folder, check=check, overwrite=True)
        found = read_index(folder)
        assert found.bits.tolist() == [16, 16, 16, 8]
        assert found.channels.tolist() == [1, 3, 1, 3]
        low, high = np.percentile(pixels, [0.5, 99.5])
        assert abs(found.low[0] - low) <= 2
        assert abs(found.high[0] - high) <= 2
        assert (found.low[2], found.high[2]) == (512.0, 712.0)  # (window - intercept) / slope
        assert (found.slope[2], found.intercept[2]) == (2.0, -1024.0)
        assert (found.low[3], found.high[3]) == (0, 255)
        if check == "pixels":
            images = open_packed(str(folder))
            shown = torch.cat([images.decode(i).reshape(3, -1) for i in range(4)], dim=1).double() / 255
            assert np.allclose(read_manifest(folder).mean, shown.mean(1), atol=2e-5)
    assert read_manifest(folder).bits == {"8": 1, "16": 3}


def test_a_killed_process_is_one_clear_error_and_its_work_is_kept(folder: Path, monkeypatch) -> None:
    dies = [sys.executable, "-c", "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)"]
    crashes = [sys.executable, "-c", "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 11)"]
    start = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    monkeypatch.setattr(scanning, "_start", lambda _: start(dies))
    with pytest.raises(DataError, match=r"was killed .* lower workers"):
        index(IndexConfig(src=str(folder), workers=2))
    monkeypatch.setattr(scanning, "_start", lambda _: start(crashes))
    with pytest.raises(DataError, match=r"no usable sample.*crashes the decoder"):
        index(IndexConfig(src=str(folder), workers=2))


def test_a_lost_manifest_of_an_older_format_gives_its_names_splits_and_classes(folder: Path) -> None:
    for number, tar in enumerate(sorted(folder.glob("*.tar"))):
        tar.rename(folder / f"part-{number}.tar")
    shards = [
        {"file": f"part-{i}.tar", "split": split, "sha256": "0"} for i, split in enumerate(["x", "x", "y"])
    ]
    old = {
        "format_version": 1,
        "name": "old",
        "licence": "MIT",
        "classes": ["dog", "cat", "eel"],
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(old))
    result = indexed(folder)
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.licence, manifest.classes) == ("old", "MIT", ("dog", "cat", "eel"))
    assert manifest.samples == {"x": 3, "y": 2}
    assert result["skipped"] == {"its bytes have changed since it was packed (sha256)": 3}


def test_the_lost_index_of_a_packed_set_comes_back(tmp_path: Path) -> None:
    source = tmp_path / "images"
    values = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for i in range(count):
            folder = source / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            deep = values.integers(0, 40000, (20 + i, 24), dtype=np.uint16)
            (folder / f"{i}.png").write_bytes(
                imagecodecs.png_encode(deep if i % 2 else (deep // 256).astype(np.uint8))
            )
    packed = tmp_path / "packed"
    pack(PackConfig(src=str(source), out=str(packed), licence="CC0", report=False))
    before, manifest = read_index(packed), read_manifest(packed)
    columns = {f.name: getattr(before, f.name) for f in fields(before)}
    columns = {name: list(column) for name, column in columns.items() if column is not None}
    (packed / "index.arrow").unlink()
    indexed(packed)
    after = read_index(packed)
    for name, column in columns.items():
        if name in ("low", "high", "slope", "intercept"):
            assert np.allclose(list(getattr(after, name)), column, rtol=1e-6), name
        else:
            assert list(getattr(after, name)) == column, name
    again = read_manifest(packed)
    assert again.model_copy(update={"mean": manifest.mean, "std": manifest.std}) == manifest
    assert np.allclose(again.mean, manifest.mean, atol=1e-5)


def test_copies_across_splits_and_privacy_are_found_as_when_packing(write_tar: WriteTar) -> None:
    said = io.BytesIO()
    exif = Image.Exif()
    exif[0x013B] = "A. Doe"
    Image.new("L", (12, 10), 7).save(said, "JPEG", exif=exif)
    write_tar("t/train-0.tar", {"a.png": 0, "b.jpg": said.getvalue(), "c.png": 1, "c.json": {"split": "val"}})
    folder = write_tar("t/test-0.tar", {"d.png": 1, "e.png": 2, "f.png": 0}).parent
    result = indexed(folder, report=True)
    found = read_findings(folder)
    assert found is not None
    assert {(pair.a, pair.b, pair.splits) for pair in found.exact.pairs} == {
        ("f", "a", ("test", "train")),
        ("d", "c", ("test", "val")),
    }
    assert result["duplicates"] == {"exact": {"across": 2, "inside": 0}, "near": {"across": 0, "inside": 0}}
    assert {kind: one.keys for kind, one in found.flags.items()} == {
        "EXIF author, date or description filled in": ("b",)
    }
    assert "2 pairs in two splits show the same pixels" in (folder / "report.html").read_text()
    indexed(folder, overwrite=True, check="header")
    assert not {"report.html", "findings.json"} & {path.name for path in folder.iterdir()}


def test_two_runs_into_one_folder_do_not_meet(folder: Path) -> None:
    holder = lock(folder / indexing.WORK_FOLDER, "")
    with holder, pytest.raises(UsageError, match="is being indexed by another process"):
        indexed(folder)
    assert indexed(folder)["samples"] == 5
    assert not (folder / indexing.WORK_FOLDER).exists()


def test_a_run_that_comes_late_keeps_the_index_of_the_one_before(folder: Path, monkeypatch) -> None:
    really = indexing.lock

    def other_ends_first(*given: str) -> object:
        monkeypatch.undo()
        indexed(folder, name="first")
        return really(*given)

    monkeypatch.setattr(indexing, "lock", other_ends_first)
    with pytest.raises(UsageError, match="has an index already"):
        indexed(folder, name="second")
    assert read_manifest(folder).name == "first"
    assert not (folder / indexing.WORK_FOLDER).exists()
