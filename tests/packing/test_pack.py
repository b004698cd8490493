"""Packing's promises: complete or absent, byte for byte where possible, every bad input one line that names it."""

import csv
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from essa_dist.data.manifest import read_manifest
from essa_dist.data.quota import BadQuota
from essa_dist.data.shards import open_packed
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.pack import PackConfig, pack


def packing(src: Path, tmp_path: Path, **settings: object) -> PackConfig:
    return PackConfig.model_validate(
        {"src": str(src), "out": str(tmp_path / "out"), "report": False, **settings}
    )


def picture(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def quarantine(out: Path) -> dict[str, str]:
    with (out / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def write_csv(folder: Path, header: str, *rows: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_class_folders_become_labels_of_one_split(image_folder, tmp_path: Path) -> None:
    result = pack(packing(image_folder({"b": 2, "a": 3}), tmp_path))
    assert result["counts"] == {"train": {"a": 3, "b": 2}}
    images = open_packed(result["out"])
    assert [images.classes[label] for label in images.labels] == [key[0] for key in images.keys]


def test_images_without_folders_are_unlabelled(image_folder, tmp_path: Path) -> None:
    result = pack(packing(image_folder({".": 3}), tmp_path))
    assert result["counts"] == {"unlabelled": {"unlabelled": 3}}


def test_split_folders_keep_their_splits_and_unlabelled_loses_its_labels(
    image_folder, tmp_path: Path
) -> None:
    source = image_folder({"train/a": 2, "train/b": 1, "test/a": 1, "unlabelled/a": 2})
    result = pack(packing(source, tmp_path))
    assert result["counts"] == {"test": {"a": 1}, "train": {"a": 2, "b": 1}, "unlabelled": {"unlabelled": 2}}


def test_fractions_divide_every_class_and_each_image_once(image_folder, tmp_path: Path) -> None:
    config = packing(image_folder({"a": 10, "b": 20}), tmp_path, splits={"train": 0.7, "test": 0.3})
    result = pack(config)
    assert result["counts"] == {"test": {"a": 3, "b": 6}, "train": {"a": 7, "b": 14}}
    keys = [key for split in ("train", "test") for key in open_packed(f"{result['out']}:{split}").keys]
    assert len(set(keys)) == 30


def test_the_division_depends_on_the_seed_only(image_folder, tmp_path: Path) -> None:
    source = image_folder({"a": 20})
    held_out = []
    for out, seed in (("0", 0), ("1", 0), ("2", 1)):
        pack(
            packing(source, tmp_path, out=str(tmp_path / out), seed=seed, splits={"train": 0.5, "test": 0.5})
        )
        held_out.append(list(open_packed(f"{tmp_path / out}:test").keys))
    assert held_out[0] == held_out[1] != held_out[2]


def test_samples_are_stored_shuffled_not_class_after_class(image_folder, tmp_path: Path) -> None:
    pack(packing(image_folder({"a": 20, "b": 20}), tmp_path))
    labels = open_packed(str(tmp_path / "out")).labels
    assert int((np.diff(labels) != 0).sum()) > 5


def test_a_csv_gives_path_label_split_and_key(image_folder, tmp_path: Path) -> None:
    folder = image_folder({"x": 3})
    listing = write_csv(
        folder,
        "path,label,split,key",
        "x/0.png,10,train,first",
        "x/1.png,9,train,",
        "x/2.png,9,unlabelled,third",
    )
    pack(packing(listing, tmp_path))
    train = open_packed(f"{tmp_path / 'out'}:train")
    assert train.classes == ("9", "10")
    assert dict(zip(train.keys, train.labels.tolist(), strict=True)) == {"first": 1, "x/1": 0}
    assert list(open_packed(f"{tmp_path / 'out'}:unlabelled").keys) == ["third"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_jpeg_png_and_webp_are_stored_byte_for_byte(image_folder, tmp_path: Path, suffix: str) -> None:
    source = image_folder({".": 2}, suffix=suffix)
    pack(packing(source, tmp_path))
    images = open_packed(str(tmp_path / "out"))
    assert [images.read(i) for i in range(2)] == [
        (source / f"{key}.{suffix}").read_bytes() for key in images.keys
    ]


@pytest.mark.parametrize("suffix", ["tif", "bmp"])
def test_other_formats_become_png_without_loss(image_folder, tmp_path: Path, suffix: str) -> None:
    source = image_folder({".": 1}, suffix=suffix)
    pack(packing(source, tmp_path))
    with Image.open(source / f"0.{suffix}") as image:
        expected = np.asarray(image.convert("RGB"))
    images = open_packed(str(tmp_path / "out"))
    assert images.read(0)[:4] == b"\x89PNG"
    assert np.array_equal(images.decode(0).permute(1, 2, 0).numpy(), expected)


def test_image_size_reduces_the_short_side_keeps_aspect_and_never_enlarges(tmp_path: Path) -> None:
    source = tmp_path / "sizes"
    source.mkdir()
    for name, size in (("large", (80, 40)), ("exact", (20, 30)), ("small", (10, 10))):
        picture(1, *size).save(source / f"{name}.png")
    pack(packing(source, tmp_path, image_size=20))
    images = open_packed(str(tmp_path / "out"))
    shapes = {key: tuple(images.decode(i).shape[1:]) for i, key in enumerate(images.keys)}
    assert shapes == {"large": (20, 40), "exact": (30, 20), "small": (10, 10)}
    stored = {key: images.read(i) for i, key in enumerate(images.keys)}
    assert stored["exact"] == (source / "exact.png").read_bytes()


def test_quality_compresses_every_image_again(image_folder, tmp_path: Path) -> None:
    pack(packing(image_folder({".": 1}), tmp_path, quality=30))
    assert open_packed(str(tmp_path / "out")).read(0)[:3] == b"\xff\xd8\xff"


def test_a_photograph_lying_on_its_side_is_set_upright(tmp_path: Path) -> None:
    source = tmp_path / "turned"
    source.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture(1, 40, 20).save(source / "a.jpg", exif=exif)
    pack(packing(source, tmp_path))
    assert tuple(open_packed(str(tmp_path / "out")).decode(0).shape) == (3, 40, 20)


def test_grey_and_palette_images_decode_to_three_channels(tmp_path: Path) -> None:
    source = tmp_path / "modes"
    source.mkdir()
    for mode in ("L", "P", "1", "RGBA", "LA"):
        picture(1, 12, 9).convert(mode).save(source / f"{mode}.png")
    picture(1, 12, 9).convert("L").save(source / "grey.jpg")
    pack(packing(source, tmp_path))
    images = open_packed(str(tmp_path / "out"))
    assert {tuple(images.decode(i).shape) for i in range(6)} == {(3, 9, 12)}


def test_mean_and_std_are_those_of_all_stored_pixels(image_folder, tmp_path: Path) -> None:
    result = pack(packing(image_folder({".": 4}), tmp_path))
    images = open_packed(result["out"])
    pixels = np.concatenate([images.decode(i).flatten(1).numpy() for i in range(4)], axis=1) / 255
    np.testing.assert_allclose(result["mean"], pixels.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(result["std"], pixels.std(axis=1), atol=1e-5)


def test_the_manifest_tells_provenance_sizes_and_hashes(image_folder, tmp_path: Path) -> None:
    config = packing(
        image_folder({"a": 1}), tmp_path, source="here", licence="CC0", attribution="me", name="tiny"
    )
    pack(config)
    fields = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [fields[name] for name in ("name", "source", "licence", "attribution")] == [
        "tiny",
        "here",
        "CC0",
        "me",
    ]
    (shard,) = fields["shards"]
    tar = (tmp_path / "out" / shard["file"]).read_bytes()
    assert (shard["bytes"], shard["sha256"]) == (len(tar), hashlib.sha256(tar).hexdigest())


def test_unreadable_files_are_counted_named_and_left_out(
    image_folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = image_folder({"a": 3})
    (source / "a" / "text.jpg").write_text("not an image")
    (source / "a" / "empty.png").touch()
    whole = (source / "a" / "0.png").read_bytes()
    (source / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    result = pack(packing(source, tmp_path))
    assert result["samples"] == 3
    reasons = quarantine(tmp_path / "out")
    assert list(reasons) == ["a/cut.png", "a/empty.png", "a/text.jpg"]
    assert reasons["a/empty.png"] == "empty file"
    assert "not an image" in reasons["a/text.jpg"]
    assert read_manifest(tmp_path / "out").skipped == Counter(reasons.values())
    assert "text.jpg" in caplog.text


def test_blank_images_are_left_out_without_counting_against_the_quota(image_folder, tmp_path: Path) -> None:
    source = image_folder({"a": 2})
    for i in range(3):
        Image.new("RGB", (20, 20), (200, 10, 10)).save(source / "a" / f"flat{i}.png")
    result = pack(packing(source, tmp_path, quota=BadQuota(count=0)))
    assert result["samples"] == 2
    assert result["skipped"] == {"blank: its grey values have a standard deviation below 1": 3}
    pack(packing(source, tmp_path, out=str(tmp_path / "all"), blank=0))
    assert len(open_packed(str(tmp_path / "all"))) == 5


def test_random_damage_is_skipped_and_never_a_crash(image_folder, tmp_path: Path) -> None:
    rng = random.Random(0)
    source = image_folder({"good": 1})
    for suffix in ("png", "jpg", "tif", "webp", "bmp"):
        whole = (image_folder({".": 1}, name=f"whole_{suffix}", suffix=suffix) / f"0.{suffix}").read_bytes()
        for i in range(12):
            broken = bytearray(whole[: rng.randrange(4, len(whole))])
            for _ in range(5):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            (source / "good" / f"{suffix}{i}.{suffix}").write_bytes(bytes(broken))
    result = pack(packing(source, tmp_path, quota=BadQuota(count=1000)))
    assert result["samples"] + sum(result["skipped"].values()) == 61
    assert sum(result["skipped"].values()) > 30


def test_a_decompression_bomb_is_skipped(
    image_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder({"a": 2})
    Image.new("RGB", (300, 300)).save(source / "a" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40)
    result = pack(packing(source, tmp_path))
    ((reason, count),) = result["skipped"].items()
    assert "more than 1600 pixels" in reason
    assert count == 1


def test_more_unreadable_files_than_the_quota_are_an_error_that_leaves_nothing(
    image_folder, tmp_path: Path
) -> None:
    source = image_folder({"a": 3})
    for i in range(3):
        (source / "a" / f"bad{i}.png").write_text("x")
    with pytest.raises(
        DataError, match=r"more than 2 of 6 files can't be read.*bad0\.png \(not an image[^)]*\).*quota"
    ):
        pack(packing(source, tmp_path, quota=BadQuota(count=2)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_the_quota_is_the_larger_of_count_and_fraction() -> None:
    assert BadQuota(count=3, fraction=0.1).allowed(20) == 3
    assert BadQuota(count=3, fraction=0.1).allowed(100) == 10


def test_a_pack_broken_off_leaves_nothing_and_an_old_set_untouched(
    image_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder({"a": 3})
    config = packing(source, tmp_path, overwrite=True)
    pack(config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("essa_dist.packing.writer.ShardWriter.add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(config)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def test_an_existing_out_is_refused_and_replaced_only_if_it_is_a_packed_set(
    image_folder, tmp_path: Path
) -> None:
    source = image_folder({"a": 3})
    pack(packing(source, tmp_path))
    with pytest.raises(UsageError, match=r"exists already.*overwrite=true"):
        pack(packing(source, tmp_path))
    (source / "a" / "2.png").unlink()
    assert pack(packing(source, tmp_path, overwrite=True))["samples"] == 2
    with pytest.raises(UsageError, match="not a packed data set"):
        pack(packing(source, tmp_path, out=str(source), overwrite=True))
    assert (source / "a" / "0.png").exists()


def test_files_that_differ_in_their_suffix_alone_are_both_packed(image_folder, tmp_path: Path) -> None:
    source = image_folder({"a": 1})
    (source / "a" / "0.jpg").write_bytes((source / "a" / "0.png").read_bytes())
    out = pack(packing(source, tmp_path))["out"]
    assert sorted(open_packed(out).keys) == ["a/0_jpg", "a/0_png"]


def test_a_missing_path_an_empty_folder_and_a_folder_without_images_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        pack(packing(tmp_path / "nowhere", tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no images in .* \(0 other files\)"):
        pack(packing(empty, tmp_path))
    (empty / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"\(1 other files\); known suffixes: \.jpg"):
        pack(packing(empty, tmp_path))


def test_an_image_beside_class_folders_is_refused(image_folder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0\.png lies beside folders of images.*cat"):
        pack(packing(image_folder({".": 1, "cat": 1}), tmp_path))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("paths,label", "no column `path`, but `paths`: rename it"),
        ("file,label", "no column `path`; it has: file, label"),
        ("path,lable", "no column `label`, but `lable`"),
    ],
)
def test_a_csv_without_its_columns_names_the_nearest(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pack(packing(write_csv(tmp_path, header, "a.png,x"), tmp_path))


def test_csv_rows_that_lead_nowhere_count_against_the_quota(image_folder, tmp_path: Path) -> None:
    listing = write_csv(image_folder({"x": 1}), "path", "x/0.png", "x/1.png")
    assert pack(packing(listing, tmp_path))["skipped"] == {"no such file": 1}


def test_a_csv_with_no_rows_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lists no images"):
        pack(packing(write_csv(tmp_path, "path"), tmp_path))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"path\n\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a CSV in UTF-8"):
        pack(packing(binary, tmp_path))


def test_fractions_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"sum to 1, got a sum of 1\.1"):
        PackConfig(src="a", out="b", splits={"train": 0.8, "test": 0.3})
