"""Targets in the classes of the training set, whatever set they come from."""

import logging

import numpy as np
import pytest
import torch

from essa_dist.data.labelled.labels import IGNORE, labels_of, mask_pixels
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.errors import UsageError


def stored_mask(images: PackedImages, i: int) -> torch.Tensor:
    mask = images.mask(i)
    assert mask is not None
    return mask


def test_single_labels_are_numbered_as_the_training_set_numbers_them(single: PackedImages) -> None:
    labels = labels_of(single, classes=("z", "c", "a", "b"))
    for i, key in enumerate(single.keys):
        assert labels.classes[int(labels.target(single, i))] == key.split("/")[0]
    assert labels.counts(np.arange(11)).tolist() == [0, 2, 5, 4]
    assert labels.target(single, 0).dtype == torch.int64


def test_a_class_that_the_model_does_not_know_is_refused_by_name(single: PackedImages) -> None:
    with pytest.raises(UsageError, match=r"has images of c, which the model doesn't know"):
        labels_of(single, classes=("a", "b"))


def test_sets_without_a_common_class_are_refused(single: PackedImages) -> None:
    with pytest.raises(UsageError, match=r"share no class: it has a, b, c; the model x, y"):
        labels_of(single, classes=("x", "y"))


def test_several_labels_keep_unknown_ones_and_lack_missing_columns(
    multi: PackedImages, caplog: pytest.LogCaptureFixture
) -> None:
    own = labels_of(multi)
    other = labels_of(multi, classes=("y", "new", "x"))
    assert "says nothing of new" in caplog.text
    for i in range(12):
        x, y = own.target(multi, i).tolist()
        assert other.target(multi, i).tolist() == [y, -1, x]
    assert own.target(multi, 0).dtype == torch.float32
    everything = np.arange(12)
    assert own.counts(everything).tolist() == [6, 4]
    assert own.known_counts(everything).tolist() == [12, 8]


def test_masks_are_renumbered_and_foreign_classes_ignored(
    segmented: PackedImages, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        labels = labels_of(segmented, "mask", classes=("sky", "cell"))
    assert "pixels of ground are ignored" in caplog.text
    i = int(np.flatnonzero(labels.known)[0])
    stored = stored_mask(segmented, i)
    assert torch.equal(labels.target(segmented, i), torch.where(stored == 1, 1, IGNORE).to(torch.uint8))


def test_samples_without_a_mask_are_known_to_have_none(segmented: PackedImages) -> None:
    labels = labels_of(segmented, "mask")
    assert int(labels.known.sum()) == 8
    with pytest.raises(UsageError, match="has no mask"):
        labels.target(segmented, int(np.flatnonzero(~labels.known)[0]))


def test_pixels_of_masks_are_counted(segmented: PackedImages) -> None:
    labels = labels_of(segmented, "mask")
    samples = np.flatnonzero(labels.known)
    slow = [[int((stored_mask(segmented, i) == value).sum()) for value in (0, 1)] for i in samples]
    assert mask_pixels(segmented, labels, samples).tolist() == slow
    with pytest.raises(UsageError, match="counted by pixels"):
        labels.counts(samples)


def test_a_set_without_labels_says_what_it_lacks(
    packed, segmented: PackedImages, single: PackedImages
) -> None:
    with pytest.raises(UsageError, match="has no class labels; pack labelled images"):
        labels_of(open_packed(str(packed)))
    with pytest.raises(UsageError, match="only masks: it is for segmentation"):
        labels_of(segmented)
    with pytest.raises(UsageError, match="has no masks: pack it with"):
        labels_of(single, "mask")


def test_the_wrong_kind_of_labels_is_refused(single: PackedImages, multi: PackedImages) -> None:
    with pytest.raises(UsageError, match="has one class for an image, the task needs several"):
        labels_of(single, "multi")
    with pytest.raises(UsageError, match="has several labels for an image, the task needs one"):
        labels_of(multi, "single")
