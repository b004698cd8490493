"""Colour changes as matrices: the same as one by one, as long as nothing is clipped."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from essa_dist.data import colour
from essa_dist.data.dali.arguments import arguments, colour_matrices, names, turn_hue
from essa_dist.data.views import POLICIES, CropConfig, draw_views

AMOUNTS = {"brightness": 0.9, "contrast": 0.8, "saturation": 0.7}


def dull(seed: int) -> NDArray[np.float32]:
    """[5, 7, 3] values that no change here brings to 0 or 255."""
    return np.random.default_rng(seed).uniform(90, 160, (5, 7, 3)).astype(np.float32)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations(AMOUNTS)))
def test_a_sequence_of_changes_is_one_pair_of_matrices(order: tuple[str, ...], grey: bool) -> None:
    pixels = dull(1)
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    for name in order:
        getattr(colour, f"{name}_")(image, AMOUNTS[name])
    if grey:
        colour.grayscale_(image)
    matrix, of_mean = colour_matrices([(name, AMOUNTS[name]) for name in order], grey)
    found = pixels @ matrix.T + of_mean @ pixels.reshape(-1, 3).mean(0)
    np.testing.assert_allclose(found, image.permute(1, 2, 0), atol=0.01)


@pytest.mark.parametrize("turn", [-1 / 3, 0, 1 / 3])
def test_thirds_of_a_turn_are_those_of_hsv(turn: float) -> None:
    image = torch.from_numpy(dull(2)).permute(2, 0, 1).contiguous()
    expected = colour.hue_(image.clone(), turn).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(dull(2) @ turn_hue(turn).T, expected, atol=0.01)


@pytest.mark.parametrize("turn", [-0.1, -0.02, 0.05, 0.1])
def test_smaller_turns_move_the_hue_as_far_and_leave_grey_alone(turn: float) -> None:
    before = dull(3).reshape(-1, 3)
    after = before @ turn_hue(turn).T
    moved = [hue(new) - hue(old) for old, new in zip(before, after, strict=True)]
    off = [(one - turn + 0.5) % 1 - 0.5 for one in moved]  # hue is a circle
    assert np.abs(off).max() < 0.01
    np.testing.assert_allclose(turn_hue(turn) @ [77, 77, 77], [77, 77, 77])


def hue(colour_: NDArray[np.float32]) -> float:
    return colorsys.rgb_to_hsv(*(colour_ / 255))[0]


def test_nothing_drawn_is_the_identity() -> None:
    matrix, of_mean = colour_matrices((), grey=False)
    assert np.array_equal(matrix, np.eye(3))
    assert not of_mean.any()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_number_of_a_view_reaches_the_pipeline(policy: str) -> None:
    config = CropConfig(policy=policy, n_local=3)
    views = [draw_views(config, 50, 60, seed) for seed in range(40)]
    arrays = arguments(views)
    assert {array.shape[:2] for array in arrays.values()} == {(5, 40)}
    for number in range(5):
        left_out = set(arrays) - set(names(POLICIES[policy], number))
        for name in left_out - {"matrix", "of_mean"}:
            assert not arrays[name][number].any(), name  # what is never asked for is never drawn
    assert arrays["anchor"][4, 7].tolist() == list(views[7][4].box[:2])
    assert arrays["shape"][1, 39].tolist() == list(views[39][1].box[2:])
