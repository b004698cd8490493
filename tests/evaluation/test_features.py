"""Feature extraction's promises: the model's own tokens, every image once and in order, nothing skipped."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from essa_dist.backbones import Backbone
from essa_dist.errors import DataError, DivergedError, UsageError
from essa_dist.evaluation.features import extract_features, prepare_image

SIZE = 32
Draw = Callable[..., Any]


def features(backbone: Backbone, images: Any, **settings: Any) -> Tensor:
    return extract_features(backbone, images, image_size=SIZE, **settings).features


def test_features_are_the_class_tokens_of_each_image_in_order(backbone: Backbone, draw: Draw) -> None:
    images = draw(["red", "blue"], [3, 4])
    found = extract_features(backbone, images, image_size=SIZE, batch_size=3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    for pixels, feature in zip(images.pixels, found.features, strict=True):
        with torch.no_grad():
            one = backbone(((prepare_image(pixels, SIZE) / 255 - mean) / std)[None])
        torch.testing.assert_close(feature, one.cls[0], rtol=1e-4, atol=1e-5)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found.keys == tuple(images.keys)
    assert found.features.dtype == torch.float32
    assert not found.features.is_inference()  # so that a probe can be trained on them


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 4), (7, 2), (64, 1)])
def test_neither_batch_size_nor_workers_change_the_features(
    backbone: Backbone, draw: Draw, batch_size: int, workers: int
) -> None:
    images = draw(["red", "grey"], [4, 3])
    found = features(backbone, images, batch_size=batch_size, workers=workers)
    torch.testing.assert_close(found, features(backbone, images), rtol=1e-4, atol=1e-5)


def test_two_extractions_are_bit_equal(backbone: Backbone, draw: Draw) -> None:
    images = draw(["red"], [5])
    assert features(backbone, images, workers=4).equal(features(backbone, images, workers=4))


def test_pooling_chooses_class_token_patch_mean_or_both(backbone: Backbone, draw: Draw) -> None:
    images = draw(["green"], [2])
    cls, mean, both = (features(backbone, images, pooling=p) for p in ("cls", "mean", "cls+mean"))
    assert both.shape == (2, 2 * backbone.embed_dim)
    torch.testing.assert_close(both, torch.cat([cls, mean], dim=1))
    assert not torch.allclose(cls, mean)


@pytest.mark.parametrize("crop", [1.0, 0.65, 0.5])
def test_preparation_is_pillows_bicubic_resize_of_the_central_share(crop: float) -> None:
    random = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (1, 3, 6, 8), generator=random).float()
    image = torch.nn.functional.interpolate(coarse, (60, 80)).to(torch.uint8)[0]
    height, width = round(60 * crop), round(80 * crop)
    top, left = (60 - height) // 2, (80 - width) // 2
    cut = image[:, top : top + height, left : left + width]
    oracle = Image.fromarray(cut.permute(1, 2, 0).numpy()).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    found = prepare_image(image, SIZE, crop)
    assert found.dtype == torch.uint8
    expected = np.asarray(oracle).astype(int)
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_an_image_of_another_shape_is_squeezed_and_not_cut() -> None:
    image = torch.zeros(3, 10, 40, dtype=torch.uint8)
    image[:, :, 30:] = 255
    found = prepare_image(image, SIZE)
    assert found[:, :, : SIZE // 2].eq(0).all()
    assert found[:, :, -SIZE // 8 :].eq(255).all()


def test_unlabelled_images_have_label_minus_one(backbone: Backbone, draw: Draw) -> None:
    images = draw(["red"], [2])
    images.labels = None
    assert extract_features(backbone, images, image_size=SIZE).labels.tolist() == [-1, -1]


def test_progress_tells_images_done_of_images_in_all(backbone: Backbone, draw: Draw) -> None:
    seen: list[tuple[int, int]] = []
    features(backbone, draw(["red"], [5]), batch_size=2, progress=lambda *done: seen.append(done))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_bf16_is_near_fp32(backbone: Backbone, draw: Draw) -> None:
    images = draw(["red", "blue"], [2, 2])
    exact, rough = features(backbone, images), features(backbone, images, bf16=True)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(("size", "nearest"), [(33, "32 or 48"), (225, "224 or 240"), (9, "16 or 32")])
def test_a_size_that_patches_do_not_tile_is_refused(
    backbone: Backbone, draw: Draw, size: int, nearest: str
) -> None:
    message = rf"image_size={size} is not a multiple of the patch size 16 of .*: use {nearest}$"
    with pytest.raises(UsageError, match=message):
        extract_features(backbone, draw(["red"], [1]), image_size=size)


def test_an_unreadable_image_is_an_error_that_names_its_key(
    backbone: Backbone, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw(["red"], [5])
    read = type(images).decode

    def fail_at_three(self: Any, i: int) -> Tensor:
        if i == 3:
            raise OSError("image file is\ntruncated")
        found: Tensor = read(self, i)
        return found

    monkeypatch.setattr(type(images), "decode", fail_at_three)
    with pytest.raises(DataError, match=r"^image 'key3' of split 'train' .*\(image file is truncated\).*$"):
        features(backbone, images, batch_size=2)


def test_features_that_are_not_finite_are_an_error_that_names_a_key(backbone: Backbone, draw: Draw) -> None:
    broken = deepcopy(backbone)
    torch.nn.init.constant_(broken.vit.norm.weight, torch.nan)
    with pytest.raises(DivergedError, match="not finite for 2 of 2 images, first 'key0'"):
        features(broken, draw(["red"], [2]))
