"""One source of images: packed sets, folders, lists and single files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydicom.data import get_testdata_file

from essa_dist.data.pixels import Window
from essa_dist.data.shards import open_packed
from essa_dist.errors import DataError, UsageError
from essa_dist.inference.decoding import CHUNK, Ready, read_ahead
from essa_dist.inference.images import ImagesConfig, open_images
from essa_dist.inference.interface import Facts, Images, LeftOut, Picture


def opened(images: Any, window: Window = "header", **settings: Any) -> Images:
    return open_images(ImagesConfig(images=images, **settings), window)


def seen(images: Images) -> list[Picture | LeftOut]:
    return [one for item in range(len(images)) for one in images.pictures(item)]


def keys(images: Images) -> list[str]:
    return [one.key for one in seen(images)]


def dicom(name: str) -> Path:
    """A file that comes with pydicom."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


def test_files_of_a_folder_come_sorted_by_their_relative_paths(folder: Path) -> None:
    found = keys(opened(str(folder)))
    assert found == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert len(found) == 13


def test_a_packed_set_gives_all_its_splits_or_the_named_one(packed: str) -> None:
    both, one = opened(packed), opened(f"{packed}:test")
    sets = {split: open_packed(f"{packed}:{split}") for split in ("train", "test")}
    assert keys(one) == list(sets["test"].keys)
    assert sorted(keys(both)) == sorted([*sets["train"].keys, *sets["test"].keys])
    for item in range(len(both)):
        split, i = both.find(item)
        images = both.packed[split]
        (picture,) = both.pictures(item)
        assert isinstance(picture, Picture)
        assert (picture.key, both.facts(item).split) == (images.keys[i], images.split)
        assert torch.equal(picture.pixels, images.decode(i))
    assert both.identity != one.identity


@pytest.mark.parametrize("window", ["header", (1000.0, 4000.0)])
def test_files_look_as_their_packed_set_does(folder: Path, packed: str, window: Any) -> None:
    files = {one.key.rpartition(".")[0]: one for one in seen(opened(str(folder), window))}
    for stored in seen(opened(packed, window)):
        one = files[stored.key]
        assert isinstance(stored, Picture)
        assert isinstance(one, Picture)
        assert torch.equal(one.pixels, stored.pixels), stored.key


def test_frames_of_a_file_are_numbered(tmp_path: Path) -> None:
    images = opened((str(dicom("SC_rgb_rle_2frame.dcm")), str(dicom("CT_small.dcm"))))
    assert [key.rpartition("/")[2] for key in keys(images)] == [
        "SC_rgb_rle_2frame.dcm#f0001",
        "SC_rgb_rle_2frame.dcm#f0002",
        "CT_small.dcm",
    ]
    assert [one.name.rpartition("/")[2] for one in seen(images) if isinstance(one, Picture)] == [
        "SC_rgb_rle_2frame_f0001",
        "SC_rgb_rle_2frame_f0002",
        "CT_small",
    ]


def test_a_window_in_hounsfield_units_shows_what_lies_in_it() -> None:
    (wide,) = seen(opened(str(dicom("CT_small.dcm")), (-1024.0, 3071.0)))
    (bone,) = seen(opened(str(dicom("CT_small.dcm")), (300.0, 301.0)))
    assert isinstance(wide, Picture)
    assert isinstance(bone, Picture)
    assert 0 < wide.pixels.float().mean() < 255
    assert set(bone.pixels.unique().tolist()) <= {0, 255}


def test_what_is_no_picture_is_told_apart_from_what_is_broken() -> None:
    broken, plan = seen(opened((str(dicom("MR_truncated.dcm")), str(dicom("rtdose.dcm")))))
    assert isinstance(broken, LeftOut)
    assert isinstance(plan, LeftOut)
    assert (broken.harmless, plan.harmless) == (False, True)


@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_a_list_gives_its_files_in_its_order(folder: Path, name: str) -> None:
    paths = ["dog/1.jpg", "cat/0.png", "cat/nowhere.png"]
    lines = ["path", *paths] if name.endswith("csv") else paths
    listing = folder.parent / name
    listing.write_text("\n".join(f"{folder.name}/{line}" if "/" in line else line for line in lines))
    found = seen(opened(str(listing)))
    assert [one.key.partition("/")[2] for one in found] == paths
    assert isinstance(found[2], LeftOut)
    assert found[2].reason == "no such file"


def test_lists_that_can_not_be_right_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "twice.txt").write_text("a.png\na.png\n")
    with pytest.raises(DataError, match=r"a\.png is listed twice"):
        opened(str(tmp_path / "twice.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no images"):
        opened(str(tmp_path / "empty.txt"))
    (tmp_path / "table.csv").write_text("file,label\na.png,cat\n")
    with pytest.raises(UsageError, match="no column `path`"):
        opened(str(tmp_path / "table.csv"))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no images in"):
        opened(str(tmp_path / "none"))


def test_a_wrong_split_names_the_right_ones(packed: str) -> None:
    with pytest.raises(UsageError, match=r"no split 'tset'; this data set has: t"):
        opened(f"{packed}:tset")


def test_names_stay_inside_a_folder_and_differ(folder: Path) -> None:
    paths = (f"{folder}/cat/../cat/0.png", f"{folder}/dog/0.png")
    names = [one.name for one in seen(opened(paths)) if isinstance(one, Picture)]
    assert len(set(names)) == 2
    assert not any(name.startswith("/") or ".." in name for name in names)


class Volumes:
    """Items of several pictures; every third one breaks off at its end."""

    classes: tuple[str, ...] = ()
    several = False
    identity = ""
    packed = ()
    counts = (1, 3 * CHUNK, 0, CHUNK, 2, CHUNK + 1)

    def __len__(self) -> int:
        return len(self.counts)

    def pictures(self, item: int) -> Any:
        for i in range(self.counts[item]):
            yield Picture(f"{item}#{i}", f"{item}_{i}", torch.full((3, 2, 2), i, dtype=torch.uint8))
        if item % 3 == 0:
            yield LeftOut(str(item), "broken off")

    def facts(self, item: int) -> Facts:
        return Facts()

    def find(self, item: int) -> tuple[int, int]:
        raise IndexError


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (3, 2), (8, 50)])
def test_threads_change_no_order_and_lose_no_picture(workers: int, ahead: int) -> None:
    images = Volumes()
    items = [(item // 2, item) for item in range(len(images))]
    chunks = list(read_ahead(images, items, lambda pixels: int(pixels.max()), workers=workers, ahead=ahead))
    found = [one for chunk in chunks for one in chunk.found]
    assert [one.key for one in found] == [one.key for one in seen(images)]
    assert [one.value for one in found if isinstance(one, Ready)] == [
        i for count in images.counts for i in range(count)
    ]
    assert list(dict.fromkeys((chunk.part, chunk.item) for chunk in chunks)) == items
    assert max(len(chunk.found) for chunk in chunks) == CHUNK


def test_a_picture_that_can_not_be_prepared_is_left_out() -> None:
    def prepare(pixels: torch.Tensor) -> int:
        if int(pixels.max()) == 1:
            raise ValueError("too  odd")
        return 0

    chunks = list(read_ahead(Volumes(), [(0, 4)], prepare, workers=1, ahead=1))
    assert [type(one) for one in chunks[0].found] == [Ready, LeftOut]
    assert chunks[0].found[1] == LeftOut("4#1", "too odd")
