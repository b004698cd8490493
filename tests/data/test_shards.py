"""A packed set's promises: ordinary WebDataset tars, the same bytes every time, damage said in one line."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essa_dist.data.index import read_index
from essa_dist.data.manifest import read_manifest
from essa_dist.data.shards import PackedImages, UndecodableImage, open_packed, place_of
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.pack import PackConfig, pack


@pytest.fixture
def labelled(image_folder, tmp_path: Path) -> Path:
    out = tmp_path / "labelled"
    source = image_folder({"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2, "unlabelled": 2})
    pack(PackConfig(src=str(source), out=str(out), report=False))
    return out


def test_random_access_gives_the_very_bytes_that_tarfile_reads(labelled: Path) -> None:
    images = open_packed(f"{labelled}:train")
    with tarfile.open(labelled / "train-000000.tar") as tar:
        stored = {
            name.removesuffix(".png"): tar.extractfile(name).read()
            for name in tar.getnames()
            if name[-3:] == "png"
        }
    assert {images.keys[i]: images.read(i) for i in range(len(images))} == stored
    assert len(images) == 5


def test_labels_and_keys_belong_to_the_images(labelled: Path) -> None:
    images = open_packed(f"{labelled}:test")
    assert images.classes == ("cat", "dog")
    assert [images.classes[label] for label in images.labels] == [key.split("/")[1] for key in images.keys]
    assert list(images.keys[:2]) == [images.keys[0], images.keys[1]]


def test_an_unlabelled_split_has_no_labels(labelled: Path) -> None:
    assert open_packed(f"{labelled}:unlabelled").labels is None


def test_decoded_images_are_rgb_channels_first(labelled: Path) -> None:
    images = open_packed(f"{labelled}:train")
    with Image.open(io.BytesIO(images.read(1))) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(images.decode(1).permute(1, 2, 0).numpy(), expected)


def test_the_webdataset_package_reads_the_tars(labelled: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    tar = labelled / "train-000000.tar"
    stream = (
        webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil").to_tuple("__key__", "png", "cls")
    )
    images = open_packed(f"{labelled}:train")
    seen = list(stream)
    assert [key for key, _, _ in seen] == list(images.keys)
    assert [label for _, _, label in seen] == images.labels.tolist()
    assert [image.size for _, image, _ in seen] == [(40, 32)] * 5


def test_keys_with_dots_and_long_names_survive_webdataset_and_the_index(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    folder = tmp_path / "src" / ("long" * 30)
    folder.mkdir(parents=True)
    Image.linear_gradient("L").save(folder / "scan.v2.été.png")
    pack(PackConfig(src=str(folder.parent), out=str(tmp_path / "out")))
    images = open_packed(str(tmp_path / "out"))
    (sample,) = webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False)
    assert sample["__key__"] == images.keys[0] == f"{'long' * 30}/scan_v2_été"
    assert sample["png"] == images.read(0)


def test_identical_input_gives_identical_bytes_in_every_file(image_folder, tmp_path: Path) -> None:
    source = image_folder({"a": 4, "b": 3})
    for out in ("one", "two"):
        pack(PackConfig(src=str(source), out=str(tmp_path / out), name="same", workers=1 + (out == "two")))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_tars_are_cut_before_the_limit_and_the_index_spans_them(packed: Path) -> None:
    manifest = read_manifest(packed)
    assert len(manifest.shards) > 1
    assert all(shard.bytes <= 20_480 for shard in manifest.shards)
    assert sum(shard.count for shard in manifest.shards) == len(open_packed(str(packed))) == 7


def test_an_opened_set_can_be_sent_to_another_process(packed: Path) -> None:
    images = open_packed(str(packed))
    first = images.read(0)
    copy: PackedImages = pickle.loads(pickle.dumps(images))
    assert copy.read(0) == first


def test_a_truncated_tar_is_named_with_expected_and_found_bytes_when_opened(packed: Path) -> None:
    shard = packed / "unlabelled-000001.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(
        DataError, match=rf"unlabelled-000001\.tar is damaged: expected {size} bytes, found 1000 bytes"
    ):
        open_packed(str(packed))


def test_a_missing_tar_is_named_when_opened(packed: Path) -> None:
    (packed / "unlabelled-000000.tar").unlink()
    with pytest.raises(
        DataError, match=r"unlabelled-000000\.tar is damaged: expected \d+ bytes, no such file"
    ):
        open_packed(str(packed))


@pytest.mark.parametrize("already_open", [True, False])
def test_a_tar_truncated_later_is_the_same_error_when_read(packed: Path, already_open: bool) -> None:
    images = open_packed(str(packed))
    if already_open:
        images.read(0)
    shard = packed / "unlabelled-000000.tar"
    with shard.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(
        DataError, match=r"unlabelled-000000\.tar is damaged: expected \d+ bytes, found 100 bytes"
    ):
        images.read(0)


def test_only_the_tars_of_the_chosen_split_are_needed(labelled: Path) -> None:
    (labelled / "test-000000.tar").unlink()
    assert len(open_packed(f"{labelled}:train")) == 5


def test_a_broken_image_is_named_by_shard_and_key(packed: Path) -> None:
    images = open_packed(str(packed))
    index = read_index(packed)
    with (packed / "unlabelled-000000.tar").open("r+b") as file:
        file.seek(int(index.offset[0]))
        file.write(b"\0" * 64)
    with pytest.raises(UndecodableImage, match=rf"^unlabelled-000000\.tar:{images.keys[0]}: "):
        images.decode(0)


def test_several_splits_need_a_choice(labelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"several splits.* test, train, unlabelled"):
        open_packed(str(labelled))
    with caplog.at_level("INFO"):
        assert open_packed(str(labelled), prefer=("val", "unlabelled", "train")).split == "unlabelled"
    assert "split 'unlabelled'" in caplog.text


def test_an_unknown_split_is_refused_with_the_list(labelled: Path) -> None:
    with pytest.raises(UsageError, match="no split 'tset'; this data set has: test, train, unlabelled"):
        open_packed(f"{labelled}:tset")


def test_what_is_no_packed_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_packed(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="not a packed data set"):
        open_packed(str(tmp_path))
    with pytest.raises(UsageError, match="no data set given"):
        open_packed("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"format_version": 1}', "format_version 1, this program reads 2"),
        ('{"format_version": 2}', "name: Field required"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_one_line(packed: Path, text: str, message: str) -> None:
    (packed / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_packed(str(packed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["s3://bucket/set", "http://host:80/a:b/set", "data/set"])
def test_a_reference_with_a_split_names_the_place_of_the_whole_set(place: str) -> None:
    assert {place_of(place), place_of(f"{place}:val")} == {place}
