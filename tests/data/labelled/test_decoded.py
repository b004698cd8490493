"""Shared decoded images under labels: the same images and masks in training and in evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.labelled.evaluation import evaluation_batches
from essa_dist.data.labelled.labels import labels_of
from essa_dist.data.labelled.loader import LabelledDataConfig, LabelledLoader
from essa_dist.data.shards import PackedImages


def trained(images: PackedImages, workers: int) -> list[LabelledBatch]:
    config = LabelledDataConfig.model_validate(
        {"image_size": 16, "workers": workers, "augment": {"policy": "light", "rotate": True}}
    )
    labels = labels_of(images, "mask")
    chosen = np.flatnonzero(labels.known)[:5]
    loader = LabelledLoader(images, labels, config, chosen=chosen, seed=1, global_batch=3)
    return list(loader.batches(0, 4))


def judged(images: PackedImages) -> list[LabelledBatch]:
    labels = labels_of(images, "mask")
    return list(evaluation_batches(images, labels, image_size=16, batch_size=3, threads=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_and_evaluation_see_the_same_with_and_without(
    segmented: PackedImages, tmp_path: Path, workers: int
) -> None:
    without = [*trained(segmented, workers), *judged(segmented)]
    segmented.keep_decoded(str(tmp_path / "decoded"), 1)
    for _ in range(2):
        kept = [*trained(segmented, workers), *judged(segmented)]
        for one, two in zip(without, kept, strict=True):
            assert one.keys == two.keys
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.targets, two.targets)
    assert segmented.decoded is not None
    known = labels_of(segmented, "mask").known
    assert [segmented.decoded.has(segmented.index, i) for i in range(9)] == known.tolist()
