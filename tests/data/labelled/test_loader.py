"""Labelled batches: the plan over the subset, the same on any ranks and workers, resumable, honest about bad samples."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.labelled.labels import labels_of
from essa_dist.data.labelled.loader import LabelledDataConfig, LabelledLoader, SubsetPlan
from essa_dist.data.labelled.transforms import Statistics, augment
from essa_dist.data.plan import SamplePlan, sample_seed
from essa_dist.data.quota import BadQuota
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.errors import DataError, UsageError

STEPS, GLOBAL_BATCH, SIZE = 5, 4, 16
CHOSEN = np.array([0, 2, 3, 5, 8, 10])
"""Of eleven; fewer than two batches, so that steps go over the end of an epoch."""


def loader(
    images: PackedImages, chosen=CHOSEN, kind=None, workers: int = 0, **settings: Any
) -> LabelledLoader:
    augment = {"policy": "light", "hflip": 0.5, "rotate": True, **settings.pop("augment", {})}
    quota = settings.pop("quota", BadQuota())
    config = LabelledDataConfig.model_validate(
        {"image_size": SIZE, "workers": workers, "augment": augment, "bad_sample_quota": quota}
    )
    arguments = {"seed": 1, "global_batch": GLOBAL_BATCH, **settings}
    return LabelledLoader(images, labels_of(images, kind), config, chosen=chosen, **arguments)


def same(one: LabelledBatch, two: LabelledBatch) -> bool:
    return (one.keys, one.step) == (two.keys, two.step) and all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in ("images", "targets", "indices")
    )


def join(parts: list[LabelledBatch]) -> LabelledBatch:
    """The batches of all ranks, as one."""
    joined = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in ("images", "targets", "indices")
    }
    return LabelledBatch(**joined, keys=sum((part.keys for part in parts), ()), step=parts[0].step)


def break_bytes(images: PackedImages, i: int, *, mask: bool = False) -> str:
    """Overwrite the first bytes of an image, or of its mask, in its tar; returns its ``shard:key``."""
    index = images.index
    with (images.folder / images.manifest.shards[int(index.shard[i])].file).open("r+b") as file:
        file.seek(int((index.mask_offset if mask else index.offset)[i]))
        file.write(b"\0" * 40)
    return images.where(i)


def test_batches_follow_the_plan_over_the_subset_with_the_label_of_each_sample(single: PackedImages) -> None:
    plan, labels = SamplePlan(len(CHOSEN), seed=1), labels_of(single)
    made = loader(single)
    statistics = Statistics(single.manifest.mean, single.manifest.std)
    recipe = LabelledDataConfig.model_validate({"augment": {"rotate": True}}).augment.recipe()
    for step, batch in enumerate(made.batches(0, STEPS)):
        expected = CHOSEN[plan.indices(step, GLOBAL_BATCH)]
        assert batch.indices.tolist() == expected.tolist()
        for place, i in enumerate(expected):
            seed = sample_seed(1, step * GLOBAL_BATCH + place)
            assert torch.equal(
                batch.images[place], augment(single.decode(i), None, recipe, SIZE, statistics, seed)[0]
            )
            assert int(batch.targets[place]) == int(labels.values[i])
            assert batch.keys[place] == single.keys[i]


def test_every_sample_comes_once_an_epoch_though_batches_go_over_its_end(single: PackedImages) -> None:
    seen = torch.cat([batch.indices for batch in loader(single).batches(0, 6)]).tolist()
    for epoch in range(4):
        assert sorted(seen[6 * epoch : 6 * epoch + 6]) == CHOSEN.tolist()


@pytest.mark.parametrize("kind", ["single", "multi", "mask"])
def test_shapes_and_types_are_those_of_the_contract(
    kind: str, single: PackedImages, multi: PackedImages, segmented: PackedImages
) -> None:
    images = {"single": single, "multi": multi, "mask": segmented}[kind]
    chosen = np.flatnonzero(labels_of(images, kind).known)  # type: ignore[arg-type]
    batch = next(loader(images, chosen, kind).batches(3, 4))
    assert (batch.images.shape, batch.images.dtype) == ((4, 3, SIZE, SIZE), torch.uint8)
    shape, dtype = {
        "single": ((4,), torch.int64),
        "multi": ((4, 2), torch.float32),
        "mask": ((4, SIZE, SIZE), torch.uint8),
    }[kind]
    assert (tuple(batch.targets.shape), batch.targets.dtype) == (shape, dtype)
    assert (batch.indices.dtype, batch.step, len(batch.keys)) == (torch.int64, 3, 4)


@pytest.mark.parametrize("policy", ["light", "medpeft_adamw"])
def test_workers_and_ranks_change_nothing(single: PackedImages, policy: str) -> None:
    settings = {"augment": {"policy": policy}}
    whole = list(loader(single, **settings).batches(0, STEPS))
    helped = list(loader(single, workers=2, **settings).batches(0, STEPS))
    assert all(same(one, two) for one, two in zip(whole, helped, strict=True))
    for world in (2, 4):
        ranks = [
            list(loader(single, rank=rank, world_size=world, **settings).batches(0, STEPS))
            for rank in range(world)
        ]
        assert all(
            same(join(list(parts)), one) for parts, one in zip(zip(*ranks, strict=True), whole, strict=True)
        )


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (3, 1)])
def test_going_on_at_any_step_gives_the_same_tail(single: PackedImages, start: int, workers: int) -> None:
    settings = {"augment": {"policy": "medpeft_adamw"}}
    whole = list(loader(single, **settings).batches(0, STEPS))
    tail = list(loader(single, workers=workers, **settings).batches(start, STEPS))
    assert len(tail) == STEPS - start
    assert all(same(one, two) for one, two in zip(tail, whole[start:], strict=True))


def test_a_broken_image_is_replaced_by_one_of_the_subset_with_that_ones_label(
    single: PackedImages, caplog: pytest.LogCaptureFixture
) -> None:
    where, labels = break_bytes(single, 10), labels_of(single)  # the last chosen: the first takes its place
    made = loader(single, workers=1)
    batches = list(made.batches(0, STEPS))
    seen = torch.cat([batch.indices for batch in batches])
    assert set(seen.tolist()) == set(CHOSEN.tolist()) - {10}
    assert torch.cat([batch.targets for batch in batches]).tolist() == labels.values[seen.numpy()].tolist()
    assert made.bad == (where,)
    assert any(where in batch.bad for batch in batches)
    assert f"can't decode {where}" in caplog.text


def test_a_broken_mask_counts_as_a_broken_image(segmented: PackedImages) -> None:
    chosen = np.flatnonzero(labels_of(segmented, "mask").known)
    where = break_bytes(segmented, int(chosen[0]), mask=True)
    made = loader(segmented, chosen, "mask")
    assert all(int(chosen[0]) not in batch.indices for batch in made.batches(0, 4))
    assert made.bad == (where,)


def test_more_broken_images_than_the_quota_end_the_run_in_one_line(single: PackedImages) -> None:
    for i in (2, 8):
        break_bytes(single, i)
    with pytest.raises(
        DataError, match=r"2 of 6 samples can't be decoded, 1 are allowed; first train-"
    ) as caught:
        list(loader(single, quota=BadQuota(count=1, fraction=0)).batches(0, STEPS))
    assert "\n" not in str(caught.value)


def test_the_plan_over_a_subset_knows_when_a_sample_comes() -> None:
    plan = SubsetPlan(CHOSEN, seed=4)
    for epoch in range(3):
        order = plan.samples(epoch, np.arange(6))
        assert sorted(order.tolist()) == CHOSEN.tolist()
        assert plan.places(epoch, order).tolist() == list(range(6))


def test_an_uneven_global_batch_and_masks_that_cannot_follow_are_refused(
    single: PackedImages, segmented: PackedImages
) -> None:
    with pytest.raises(UsageError, match="global batch 4 can't be shared evenly by 3 ranks"):
        loader(single, world_size=3)
    with pytest.raises(UsageError, match="masks don't follow"):
        loader(segmented, np.arange(4), "mask", augment={"policy": "medpeft_adamw"})


def test_splits_are_those_of_the_training_set_unless_named(image_folder, tmp_path) -> None:
    from essa_dist.packing.pack import PackConfig, pack

    folder = image_folder({f"{split}/{name}": 2 for split in ("train", "val", "test") for name in "ab"})
    pack(PackConfig(src=str(folder), out=str(tmp_path / "set"), report=False))
    config = LabelledDataConfig(train=str(tmp_path / "set"))
    assert [config.open(role).split for role in ("train", "val", "test")] == ["train", "val", "test"]
    named = config.model_copy(update={"val": f"{tmp_path / 'set'}:test"})
    assert named.open("val").split == "test"
    only = LabelledDataConfig(train=f"{tmp_path / 'set'}:val")
    assert (only.open().split, only.open("test").split) == ("val", "test")
    with pytest.raises(UsageError, match="no data set given"):
        LabelledDataConfig().open("val")


def test_a_set_without_the_split_says_which_it_has(single: PackedImages) -> None:
    with pytest.raises(UsageError, match="no split 'val'; this data set has: train"):
        LabelledDataConfig(train=str(single.folder)).open("val")


def test_the_window_is_that_of_the_settings(single: PackedImages) -> None:
    bright = LabelledDataConfig(train=str(single.folder), window=(0, 128)).open()
    plain = open_packed(str(single.folder))
    assert torch.equal(bright.decode(0).float(), (plain.decode(0).float() * 255 / 128).clamp(max=255).round())


@pytest.mark.parametrize(
    "settings",
    [{"fraction": 0.1, "shots": 4}, {"fraction": 0}, {"fraction": 1.5}, {"shots": 0}, {"fractoin": 0.1}],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LabelledDataConfig.model_validate(settings)
