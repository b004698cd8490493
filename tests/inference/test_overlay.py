"""The overlay: what is tinted, where lines run, and what stays as it was."""

import pytest
import torch
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.inference.overlay import COLOURS, IGNORE, overlay

H, W = 20, 30
GREY = torch.full((3, H, W), 100, dtype=torch.uint8)


def colour(label: int) -> Tensor:
    text = COLOURS[(label - 1) % len(COLOURS)].lstrip("#")
    return torch.tensor([int(text[i : i + 2], 16) for i in (0, 2, 4)], dtype=torch.uint8)


def square(label: int, top: int, left: int, side: int = 7) -> Tensor:
    mask = torch.zeros(H, W, dtype=torch.int64)
    mask[top : top + side, left : left + side] = label
    return mask


def test_areas_are_tinted_outlined_in_their_colour_and_the_rest_is_the_image() -> None:
    mask = square(1, 4, 3) + square(2, 9, 20)
    picture = overlay(GREY, mask)
    assert picture.shape == GREY.shape
    assert picture.dtype == torch.uint8
    for label, y, x in ((1, 4, 3), (2, 9, 20)):
        assert torch.equal(picture[:, y, x + 2], colour(label))  # the edge
        inside = picture[:, y + 3, x + 3].float()
        assert torch.allclose(inside, 0.6 * 100 + 0.4 * colour(label).float(), atol=1.5)
    assert (picture[:, mask == 0] == 100).all()


def test_with_a_truth_its_edge_is_drawn_and_not_that_of_the_prediction() -> None:
    picture = overlay(GREY, square(1, 4, 3), square(1, 4, 15))
    assert torch.equal(picture[:, 4, 17], colour(1))
    assert (picture[:, 7, 18] == 100).all()  # inside the truth nothing is tinted
    assert torch.equal(picture[:, 4, 5], picture[:, 7, 6])  # no line around the prediction


def test_ignored_pixels_and_empty_masks_leave_the_image_alone() -> None:
    nothing = torch.zeros(H, W, dtype=torch.uint8)
    assert torch.equal(overlay(GREY, nothing), GREY)
    assert torch.equal(overlay(GREY, nothing, nothing + IGNORE), GREY)


def test_a_mask_of_another_size_is_fitted_and_a_line_grows_with_the_image() -> None:
    small = overlay(GREY, square(1, 4, 4, side=8)[::2, ::2])
    assert (small != GREY).any(dim=0).sum() == 64  # 4 x 4 pixels, each 2 x 2 now
    large = torch.full((3, 600, 900), 100, dtype=torch.uint8)
    mask = torch.zeros(600, 900, dtype=torch.uint8)
    mask[100:300, 100:300] = 1
    lined = (overlay(large, mask) == colour(1)[:, None, None]).all(dim=0)
    assert lined[:, 200].sum() == 4  # two lines of 2 pixels


def test_colours_start_again_behind_the_last() -> None:
    picture = overlay(GREY, square(len(COLOURS) + 1, 4, 3))
    assert torch.equal(picture[:, 4, 4], colour(1))


def test_its_inputs_are_left_as_they_were() -> None:
    image, mask = GREY.clone(), square(1, 4, 3)
    overlay(image, mask, mask)
    assert torch.equal(image, GREY)
    assert torch.equal(mask, square(1, 4, 3))


def test_what_is_no_image_or_mask_is_refused() -> None:
    with pytest.raises(UsageError, match=r"give uint8 \[3, H, W\]"):
        overlay(GREY.float(), square(1, 4, 3))
    with pytest.raises(UsageError, match=r"give class numbers \[H, W\]"):
        overlay(GREY, square(1, 4, 3)[None])
