"""Finding what a list names: by as much of each path as the copy at hand shares with it."""

import random
from pathlib import PurePosixPath

import pytest

from essa_dist.errors import DataError
from essa_dist.packing.layouts.walk import locate


def test_longer_agreement_decides_between_files_of_one_name(tree) -> None:
    root = tree("a/1.png", "b/2.png", "old/1.png")
    assert locate(["a/1.png", "b/2.png"], root) == [root / "a/1.png", root / "b/2.png"]


def test_the_same_suffix_decides_between_two_formats(tree) -> None:
    root = tree("1.png", "1.jpg")
    assert locate(["1.jpg"], root) == [root / "1.jpg"]
    with pytest.raises(DataError, match=r"1\.tif may be any of 1\.jpg, 1\.png"):
        locate(["1.tif"], root)


def test_paths_that_only_their_folders_tell_apart_are_not_found_by_their_names(tree) -> None:
    assert locate(["a/1.png", "b/1.png"], tree("c/1.png")) == [None, None]


def test_a_list_is_found_whatever_lies_above_or_is_missing(tree) -> None:
    """Against the one right answer: the file was made from the path."""
    rng = random.Random(0)
    listed = [f"set/p{i // 4}/view{i % 4}.png" for i in range(40)]
    kept = set(rng.sample(listed, 30))
    for name, drop, above in (("same", 0, ""), ("inside", 1, ""), ("above", 0, "x/y/"), ("both", 1, "x/")):
        there = {path: above + str(PurePosixPath(*PurePosixPath(path).parts[drop:])) for path in listed}
        root = tree(*(there[path] for path in kept), name=name)
        assert locate(listed, root) == [root / there[path] if path in kept else None for path in listed]
