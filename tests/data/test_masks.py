"""Block masking's promises: DINOv2's shares and ratios, the same masks on any number of ranks."""

import random

import numpy as np
import pytest
from pydantic import ValidationError

from essa_dist.data.masks import MaskConfig, block_mask, draw_masks, mask_targets
from essa_dist.data.plan import stable_seed

GRID = (14, 16)
N = 14 * 16
DEFAULT = MaskConfig()


def masks(step: int, select: range | list[int], config: MaskConfig = DEFAULT, crops: int = 24) -> np.ndarray:
    return draw_masks(config, seed=3, step=step, crops=crops, select=select, grid=GRID)


def naive_mask(target: int, rng: random.Random) -> np.ndarray:
    """The definition, patch by patch: up to ten tries for a block, until the target is met or none fits."""
    rows, columns = GRID
    hidden: set[tuple[int, int]] = set()
    while len(hidden) < target:
        limit = min(target - len(hidden), N // 2)
        for _ in range(10):
            area = rng.uniform(4, limit)
            aspect = np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if h >= rows or w >= columns:
                continue
            top, left = int(rng.random() * (rows - h + 1)), int(rng.random() * (columns - w + 1))
            new = {(y, x) for y in range(top, top + h) for x in range(left, left + w)} - hidden
            if 0 < len(new) <= limit:
                hidden |= new
                break
        else:
            break
    mask = np.zeros(GRID, dtype=bool)
    for place in hidden:
        mask[place] = True
    return mask


def test_blocks_equal_those_of_the_naive_definition() -> None:
    for seed in range(60):
        target = seed * 2
        fast = block_mask(*GRID, target, random.Random(seed))
        assert np.array_equal(fast, naive_mask(target, random.Random(seed)))


def test_a_global_batch_equals_its_crops_drawn_one_by_one() -> None:
    targets = mask_targets(MaskConfig(), seed=3, step=5, crops=24, patches=N)
    one_by_one = [
        naive_mask(target, random.Random(stable_seed("block", 3, 5, crop))).reshape(-1)
        for crop, target in enumerate(targets)
    ]
    assert np.array_equal(masks(5, range(24)), np.stack(one_by_one))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_draw_their_own_crops_and_together_the_same_masks(world_size: int) -> None:
    whole = masks(8, range(24))
    per_rank = 24 // world_size
    parts = [masks(8, range(rank * per_rank, (rank + 1) * per_rank)) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("probability", "crops", "masked"), [(0.5, 24, 12), (0.5, 6, 3), (0.3, 10, 3), (0, 8, 0), (1, 8, 8)]
)
def test_exactly_the_given_share_of_crops_is_masked(probability: float, crops: int, masked: int) -> None:
    drawn = masks(0, range(crops), MaskConfig(probability=probability), crops=crops)
    assert int(drawn.any(axis=1).sum()) == masked


def test_targets_spread_over_the_range_one_in_each_bin() -> None:
    targets = sorted(mask_targets(MaskConfig(), seed=0, step=1, crops=40, patches=100_000))[20:]
    edges = np.linspace(0.1, 0.5, 21) * 100_000
    assert all(
        low - 1 <= target <= high for low, target, high in zip(edges, targets, edges[1:], strict=False)
    )


def test_masked_shares_stay_in_range_and_near_their_targets() -> None:
    wanted = np.array(
        [mask_targets(MaskConfig(), seed=3, step=step, crops=24, patches=N) for step in range(40)]
    )
    shares = np.array([masks(step, range(24)).mean(axis=1) for step in range(40)])
    assert (shares <= wanted / N).all()  # never more than asked for
    masked = shares[wanted > 0]
    assert masked.max() <= 0.5
    assert masked.min() > 0.05
    assert abs(masked.mean() - 0.3) < 0.02
    assert (wanted[wanted > 0] / N - masked).mean() < 0.01


def test_which_crops_are_masked_changes_with_step_and_seed() -> None:
    kinds = {
        tuple(target > 0 for target in mask_targets(MaskConfig(), seed=seed, step=step, crops=16, patches=N))
        for seed in range(4)
        for step in range(8)
    }
    assert len(kinds) > 25


def test_masked_patches_form_blocks_rather_than_scattered_dots() -> None:
    drawn = masks(2, range(24)).reshape(24, *GRID)
    drawn = drawn[drawn.any(axis=(1, 2))]
    neighbours = (drawn[:, 1:] & drawn[:, :-1]).sum()
    share = drawn.mean()
    assert (
        neighbours / drawn.sum() > 2 * share
    )  # scattered dots would have a masked patch below them by chance only


def test_a_grid_too_small_for_blocks_ends_with_fewer_patches_and_no_error() -> None:
    drawn = draw_masks(MaskConfig(probability=1), seed=0, step=0, crops=6, select=range(6), grid=(2, 2))
    assert drawn.shape == (6, 4)
    assert drawn.sum(axis=1).max() <= 2


def test_ratios_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"ratio_min 0\.6 is above ratio_max 0\.5"):
        MaskConfig(ratio_min=0.6)
