"""The fast colour operations equal torchvision's on float images, in place where they say so."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as oracle

from essa_dist.data import colour

H, W = 13, 17


def image(seed: int = 0) -> Tensor:
    """Noise, with grey, black, white and equal-maximum pixels: where hue is ill-defined."""
    pixels = torch.randint(0, 256, (3, H, W), generator=torch.Generator().manual_seed(seed)).float()
    pixels[:, 0] = pixels[:1, 0]
    pixels[:, 1, 0], pixels[:, 1, 1] = 0, 255
    pixels[0, 2], pixels[1, 2], pixels[2, 2] = 200, 200, 10
    pixels[0, 3], pixels[1, 3], pixels[2, 3] = 10, 200, 200
    pixels[0, 4], pixels[1, 4], pixels[2, 4] = 200, 10, 200
    return pixels


def assert_equal_to_oracle(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours / 255, theirs, rtol=0, atol=3e-6)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_equal_torchvision(name: str, factor: float) -> None:
    ours = getattr(colour, f"{name}_")(image(), factor)
    assert_equal_to_oracle(ours, getattr(oracle, f"adjust_{name}")(image() / 255, factor))


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.02, 0.37])
def test_hue_equals_torchvision(shift: float) -> None:
    assert_equal_to_oracle(colour.hue_(image(), shift), oracle.adjust_hue(image() / 255, shift))


def test_grayscale_equals_torchvision() -> None:
    assert_equal_to_oracle(
        colour.grayscale_(image()), oracle.rgb_to_grayscale(image() / 255, num_output_channels=3)
    )


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.3, 2.0])
def test_blur_equals_torchvision_with_a_kernel_of_9(sigma: float) -> None:
    theirs = oracle.gaussian_blur(image(), [9, 9], [sigma, sigma])
    torch.testing.assert_close(
        colour.blur(image(), sigma), theirs, rtol=0, atol=0.2
    )  # of 255: the dropped tail


def test_solarise_equals_torchvision() -> None:
    pixels = image().to(torch.uint8)
    assert torch.equal(colour.solarise(pixels), oracle.solarize(pixels, 128))
    assert colour.solarise(torch.tensor([127, 128], dtype=torch.uint8)).tolist() == [127, 127]


@pytest.mark.parametrize("name", ["brightness_", "contrast_", "saturation_", "hue_"])
def test_names_with_an_underscore_work_in_place(name: str) -> None:
    pixels = image()
    assert getattr(colour, name)(pixels, 0.3).data_ptr() == pixels.data_ptr()
