"""Sliding windows: exact for one window, the mean of all windows over a pixel otherwise, any size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.backbones import BackboneConfig, build_architecture
from essa_dist.errors import UsageError
from essa_dist.heads.segmentation import build_decoder, decode
from essa_dist.heads.segmentation.linear import LinearDecoderConfig
from essa_dist.inference.sliding import sliding_logits, starts

B, K, CROP, PATCH = 2, 5, 12, 4


def noise(height: int, width: int) -> Tensor:
    return torch.randn(B, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def seen_through_a_window(images: Tensor) -> Tensor:
    """Logits [b, K, h, w] of every pixel that depend on the whole window and on the place in it."""
    assert not images.shape[-1] % PATCH
    assert not images.shape[-2] % PATCH
    height, width = images.shape[-2:]
    place = torch.arange(height)[:, None] * 100 + torch.arange(width)
    mean = images.mean(dim=(1, 2, 3))[:, None, None, None]
    return images.sum(dim=1, keepdim=True) * torch.arange(1, K + 1).view(K, 1, 1) + place * mean


def slow(images: Tensor, stride: int) -> Tensor:
    """Window after window of images whose sides are at least CROP."""
    height, width = images.shape[-2:]
    tops, lefts = (
        sorted({min(start, side - CROP) for start in range(0, side, stride)}) for side in (height, width)
    )
    total, times = torch.zeros(B, K, height, width), torch.zeros(height, width)
    for top in tops:
        for left in lefts:
            area = (..., slice(top, top + CROP), slice(left, left + CROP))
            total[area] += seen_through_a_window(images[area])
            times[area] += 1
    assert times.min() >= 1
    return total / times


@pytest.mark.parametrize("size", [(12, 25), (13, 12), (29, 37), (24, 36)])
@pytest.mark.parametrize("stride", [12, 8, 5, 1])
def test_logits_are_the_mean_of_all_windows_over_a_pixel(size: tuple[int, int], stride: int) -> None:
    images = noise(*size)
    for batch_size in (1, 3, 100):
        found = sliding_logits(
            seen_through_a_window, images, crop=CROP, patch_size=PATCH, stride=stride, batch_size=batch_size
        )
        torch.testing.assert_close(found, slow(images, stride), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(12, 12), (8, 12), (4, 8)])
def test_one_window_is_exactly_the_whole_image(size: tuple[int, int]) -> None:
    images = noise(*size)
    found = sliding_logits(seen_through_a_window, images, crop=CROP, patch_size=PATCH)
    assert torch.equal(found, seen_through_a_window(images))


@pytest.mark.parametrize("size", [(1, 1), (3, 12), (9, 11), (5, 31), (40, 2)])
def test_a_short_side_is_padded_by_its_edge_and_cut_back(size: tuple[int, int]) -> None:
    images = noise(*size)
    found = sliding_logits(seen_through_a_window, images, crop=CROP, patch_size=PATCH, stride=8)
    assert found.shape == (B, K, *size)
    missing = [-side % PATCH if side < CROP else 0 for side in size]
    padded = F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")
    again = sliding_logits(seen_through_a_window, padded, crop=CROP, patch_size=PATCH, stride=8)
    assert torch.equal(found, again[..., : size[0], : size[1]])


def test_the_recipe_of_512_and_341_covers_an_image_without_leaving_it() -> None:
    assert starts(512, 512, 341) == [0]
    assert starts(683, 512, 341) == [0, 171]
    assert starts(1024, 512, 341) == [0, 341, 512]


def test_the_default_stride_is_two_thirds() -> None:
    images = noise(29, 37)
    found = sliding_logits(seen_through_a_window, images, crop=CROP, patch_size=PATCH)
    torch.testing.assert_close(found, slow(images, 8), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stride", [0, 13])
def test_strides_and_crops_that_can_not_be_are_refused(stride: int) -> None:
    options: dict[str, Any] = {"patch_size": PATCH}
    images = noise(20, 20)
    with pytest.raises(UsageError, match=f"stride={stride} .* use 1..12"):
        sliding_logits(seen_through_a_window, images, crop=CROP, stride=stride, **options)
    with pytest.raises(UsageError, match="crop=14 is not a multiple of the patch size 4: use 12 or 16"):
        sliding_logits(seen_through_a_window, images, crop=14, **options)
    with pytest.raises(UsageError, match=r"crop=2 .* use 4 or 8"):
        sliding_logits(seen_through_a_window, images, crop=2, **options)


@torch.inference_mode()
def test_a_model_with_a_decoder_slides_over_any_image() -> None:
    backbone = build_architecture(BackboneConfig(name="test_vit")).eval()
    decoder = build_decoder(LinearDecoderConfig(), backbone, 3).eval()

    def forward(images: Tensor) -> Tensor:
        return decode(backbone, decoder, images).logits

    images = torch.randn(1, 3, 48, 64)
    assert torch.equal(sliding_logits(forward, images, crop=64, patch_size=16), forward(images))
    assert sliding_logits(forward, torch.randn(1, 3, 70, 99), crop=48, patch_size=16).shape == (1, 3, 70, 99)
