"""A batch's promises: normalised exactly once, moved whole, pixels the same in every type of input."""

import pytest
import torch

from essa_dist.data.batch import Batch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def a_batch(n_local: int = 3) -> Batch:
    torch.manual_seed(0)
    return Batch(
        global_crops=torch.randint(0, 256, (2, 4, 3, 8, 10), dtype=torch.uint8),
        local_crops=torch.randint(0, 256, (n_local, 4, 3, 5, 6), dtype=torch.uint8),
        masks=torch.rand(2, 4, 7) < 0.5,
        keys=("a", "b", "c", "d"),
        step=9,
        bad=("x.tar:e",),
    )


def test_pixels_become_x_over_255_minus_mean_over_std() -> None:
    batch = a_batch()
    moved = batch.to("cpu", mean=MEAN, std=STD)
    for crops, normalised in (
        (batch.global_crops, moved.global_crops),
        (batch.local_crops, moved.local_crops),
    ):
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
        expected = ((crops.double() / 255 - mean) / std).float()
        torch.testing.assert_close(normalised, expected, rtol=1e-6, atol=1e-6)


def test_half_precision_is_rounded_once_from_fp32() -> None:
    batch = a_batch()
    exact = batch.to("cpu", mean=MEAN, std=STD).global_crops
    half = batch.to("cpu", mean=MEAN, std=STD, dtype=torch.bfloat16).global_crops
    assert torch.equal(half, exact.bfloat16())


def test_crops_that_are_float_already_are_not_normalised_again() -> None:
    once = a_batch().to("cpu", mean=MEAN, std=STD)
    assert torch.equal(once.to("cpu", mean=MEAN, std=STD).global_crops, once.global_crops)


def test_masks_keys_step_and_bad_samples_travel_with_the_pixels() -> None:
    batch = a_batch()
    moved = batch.to("cpu", mean=MEAN, std=STD)
    assert torch.equal(moved.masks, batch.masks)
    assert (moved.keys, moved.step, moved.bad) == (batch.keys, 9, ("x.tar:e",))


def test_a_batch_without_local_crops_keeps_its_shape() -> None:
    assert a_batch(n_local=0).to("cpu", mean=MEAN, std=STD).local_crops.shape == (0, 4, 3, 5, 6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_arrive_unchanged_on_the_device() -> None:
    batch = a_batch()
    pinned = batch.pin_memory()
    assert pinned.global_crops.is_pinned()
    assert pinned.masks.is_pinned()
    moved = pinned.to("cuda", mean=MEAN, std=STD)
    torch.testing.assert_close(moved.global_crops.cpu(), batch.to("cpu", mean=MEAN, std=STD).global_crops)
