"""Promises about classes: matched by name, never by number; leakage is said aloud."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from essa_dist.errors import UsageError
from essa_dist.evaluation.classes import common_classes, renumber, warn_of_overlap
from essa_dist.evaluation.samples import targets_of

Draw = Callable[..., Any]


def test_another_order_of_the_same_names_is_mapped_by_name(draw: Draw) -> None:
    bank, test = draw(["red", "green", "blue"], [1, 1, 1]), draw(["blue", "red", "green"], [1, 1, 1])
    common = common_classes(bank, test)
    assert common == ("red", "green", "blue")
    assert renumber(torch.tensor([0, 1, 2, 0]), test.classes, common).tolist() == [2, 0, 1, 2]


def test_a_test_class_that_the_bank_does_not_know_is_kept_last_and_warned_of(
    draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    bank, test = draw(["red", "green"], [1, 1]), draw(["blue", "green"], [1, 1])
    assert common_classes(bank, test) == ("red", "green", "blue")
    assert "no image of the bank shows blue" in caplog.text


def test_a_class_that_the_bank_names_but_does_not_show_is_warned_of(
    draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    common_classes(draw(["red", "green"], [3, 0]), draw(["red", "green"], [1, 1]))
    assert "no image of the bank shows green" in caplog.text


def test_a_class_that_the_test_set_does_not_show_is_no_matter(
    draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    assert common_classes(draw(["red", "green"], [1, 1]), draw(["red", "green"], [2, 0])) == ("red", "green")
    assert not caplog.records


def test_sets_without_a_common_class_are_refused_with_both_lists(draw: Draw) -> None:
    with pytest.raises(UsageError, match="bank has green, red; test has blue, grey"):
        common_classes(draw(["red", "green"], [1, 1]), draw(["blue", "grey"], [1, 1]))


@pytest.mark.parametrize("role", ["bank", "test"])
def test_unlabelled_images_are_refused_by_split_and_role(draw: Draw, role: str) -> None:
    sets = {"bank": draw(["red", "blue"], [1, 1]), "test": draw(["red", "blue"], [1, 1])}
    sets[role].labels, sets[role].split = None, "unlabelled"
    with pytest.raises(UsageError, match=f"'unlabelled', given as {role}, has images without label"):
        common_classes(**sets)


def test_a_single_class_is_refused(draw: Draw) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        common_classes(draw(["red"], [3]), draw(["red"], [3]))


def shards(*found: tuple[str, str, int]) -> SimpleNamespace:
    return SimpleNamespace(shards=[SimpleNamespace(split=s, sha256=h, count=n) for s, h, n in found])


def test_shards_in_both_sets_are_leakage_even_in_a_copy(draw: Draw, caplog: pytest.LogCaptureFixture) -> None:
    bank, test = draw(["red"], [5]), draw(["red"], [5], split="test")
    bank.manifest = shards(("train", "aa", 3), ("train", "bb", 2), ("val", "cc", 4))
    test.manifest = shards(("test", "bb", 2), ("test", "cc", 3), ("train", "aa", 3))
    with caplog.at_level(logging.WARNING):
        assert warn_of_overlap(bank, test) == 2
    assert "LEAKAGE: 2 of the 5 test images are in the bank" in caplog.text


def test_disjoint_splits_of_one_set_pass_in_silence(draw: Draw, caplog: pytest.LogCaptureFixture) -> None:
    bank, test = draw(["red"], [3]), draw(["red"], [2], split="test")
    bank.manifest = test.manifest = shards(("train", "aa", 3), ("test", "bb", 2))
    assert warn_of_overlap(bank, test) == 0
    assert not caplog.records


def several(images: Any, flags: list[list[int]]) -> Any:
    images.labels, images.label_matrix = None, np.array(flags, np.int8)
    return images


def test_several_labels_an_image_and_one_do_not_mix(draw: Draw) -> None:
    bank = several(draw(["red", "green"], [1, 1]), [[1, 0], [1, 1]])
    with pytest.raises(UsageError, match="bank has several labels for an image, test has one class for each"):
        common_classes(bank, draw(["red", "green"], [1, 1]))


def test_classes_of_several_labels_an_image_are_matched_by_name_and_one_is_enough(draw: Draw) -> None:
    bank = several(draw(["red", "green"], [1, 1]), [[1, 0], [1, 1]])
    test = several(draw(["blue", "green"], [1, 1]), [[0, 1], [-1, 0]])
    assert common_classes(bank, test) == ("red", "green", "blue")
    assert targets_of(test, ("red", "green", "blue")).tolist() == [[-1, 1, 0], [-1, 0, -1]]
    one = several(draw(["red"], [2]), [[1], [0]])
    assert common_classes(one, one) == ("red",)
