"""Evaluation sees every sample exactly once, with as many calls on every rank."""

import numpy as np
import pytest
import torch

from essa_dist.data.labelled.evaluation import evaluation_batches, rank_share
from essa_dist.data.labelled.labels import labels_of
from essa_dist.data.shards import PackedImages
from essa_dist.errors import DataError, UsageError
from essa_dist.evaluation.features import prepare_image


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_every_sample_comes_once_over_all_ranks_with_its_image_and_label(
    single: PackedImages, world_size: int, batch_size: int
) -> None:
    labels, seen, shapes = labels_of(single), [], []
    for rank in range(world_size):
        sizes = []
        for number, batch in enumerate(
            evaluation_batches(
                single, labels, image_size=8, batch_size=batch_size, rank=rank, world_size=world_size
            )
        ):
            assert batch.step == number
            sizes.append(len(batch.images))
            for place in (batch.indices >= 0).nonzero().flatten().tolist():
                i = int(batch.indices[place])
                seen.append(i)
                assert torch.equal(batch.images[place], prepare_image(single.decode(i), 8))
                assert (int(batch.targets[place]), batch.keys[place]) == (
                    int(labels.values[i]),
                    single.keys[i],
                )
        shapes.append(sizes)
    assert sorted(seen) == list(range(11))
    assert all(sizes == shapes[0] for sizes in shapes)


def test_ranks_take_turns_and_repeat_their_last_sample() -> None:
    samples = np.array([3, 4, 6, 9, 12])
    shares = [rank_share(samples, rank, 3) for rank in range(3)]
    assert [numbers.tolist() for numbers, _ in shares] == [[3, 9], [4, 12], [6, 6]]
    assert [counted.tolist() for _, counted in shares] == [[True, True], [True, True], [True, False]]
    idle = rank_share(samples[:1], 2, 3)
    assert (idle[0].tolist(), idle[1].tolist()) == ([3], [False])


def test_unlabelled_samples_are_left_out(segmented: PackedImages) -> None:
    labels = labels_of(segmented, "mask")
    seen = [
        int(i)
        for batch in evaluation_batches(segmented, labels, image_size=16, batch_size=3)
        for i in batch.indices
    ]
    assert seen == np.flatnonzero(labels.known).tolist()


def test_images_and_masks_may_come_at_their_own_size(segmented: PackedImages) -> None:
    labels = labels_of(segmented, "mask")
    sizes = set()
    for batch in evaluation_batches(segmented, labels, image_size=16, batch_size=1, how="native"):
        i = int(batch.indices[0])
        assert torch.equal(batch.images[0], segmented.decode(i))
        assert torch.equal(batch.targets[0], labels.target(segmented, i))
        sizes.add(tuple(batch.images.shape[2:]))
    assert len(sizes) == 3
    with pytest.raises(UsageError, match="needs batch_size=1, not 2"):
        next(evaluation_batches(segmented, labels, image_size=16, batch_size=2, how="native"))


def test_a_broken_image_ends_it_by_name_for_none_is_skipped(single: PackedImages) -> None:
    index = single.index
    with (single.folder / single.manifest.shards[int(index.shard[4])].file).open("r+b") as file:
        file.seek(int(index.offset[4]))
        file.write(b"\0" * 40)
    with pytest.raises(DataError, match=single.keys[4]) as caught:
        list(evaluation_batches(single, labels_of(single), image_size=8, batch_size=4))
    assert "evaluation skips none" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_threads_change_nothing_and_a_reader_may_leave(single: PackedImages) -> None:
    labels = labels_of(single)
    settings = {"image_size": 8, "batch_size": 4}
    one, four = (
        [batch.images for batch in evaluation_batches(single, labels, threads=threads, **settings)]
        for threads in (1, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))
    batches = evaluation_batches(single, labels, **settings)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_nothing_to_evaluate_is_refused(single: PackedImages) -> None:
    with pytest.raises(UsageError, match="leaves no sample to be evaluated"):
        next(
            evaluation_batches(single, labels_of(single), np.array([], np.int64), image_size=8, batch_size=2)
        )
