"""What is done to an image: the same for the same seed, masks with it, evaluation as elsewhere."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from essa_dist.data.labelled.labels import IGNORE
from essa_dist.data.labelled.policies import RECIPES, AugmentConfig, Recipe
from essa_dist.data.labelled.transforms import (
    ERASED_AREA,
    Statistics,
    augment,
    erase_,
    padded,
    prepare,
    rand_augment,
)
from essa_dist.errors import UsageError
from essa_dist.evaluation.features import prepare_image

STATISTICS = Statistics((0.5, 0.25, 0.75), (0.2, 0.1, 0.05))
SIZE = 24


def picture(height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def drawn(height: int = 48, width: int = 64) -> tuple[Tensor, Tensor]:
    """An image that is white where its mask is 1: whatever happens to both, that must stay so."""
    coarse = np.random.default_rng(3).integers(0, 2, (3, 4))
    mask = np.kron(coarse, np.ones((height // 3, width // 4))).astype(np.uint8)
    return torch.from_numpy(mask * 255).expand(3, -1, -1), torch.from_numpy(mask)


@pytest.mark.parametrize("policy", sorted(RECIPES))
def test_every_policy_is_a_function_of_the_seed(policy: str) -> None:
    recipe = AugmentConfig.model_validate({"policy": policy}).recipe()
    one, again = (augment(picture(), None, recipe, SIZE, STATISTICS, seed=4)[0] for _ in range(2))
    others = [augment(picture(), None, recipe, SIZE, STATISTICS, seed=seed)[0] for seed in range(5, 9)]
    assert (one.shape, one.dtype) == ((3, SIZE, SIZE), torch.uint8)
    assert torch.equal(one, again)
    assert any(not torch.equal(one, other) for other in others) == (policy != "none")


def test_without_a_policy_training_sees_what_evaluation_sees() -> None:
    seen, _ = augment(picture(), None, Recipe(), SIZE, STATISTICS, seed=1)
    assert torch.equal(seen, prepare_image(picture(), SIZE))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(hflip=0.5, vflip=0.5, rotate=True),
        Recipe(crop="random_resized", scale=(0.3, 1.0), hflip=0.5, rotate=True),
        Recipe(crop="random_resized", scale=(0.3, 1.0), resize=60, vflip=0.5),
        Recipe(crop="random", hflip=0.5, vflip=0.5, rotate=True),
    ],
)
def test_the_mask_goes_where_its_image_goes(recipe: Recipe) -> None:
    image, mask = drawn()
    for seed in range(20):
        seen, judged = augment(image, mask, recipe, 32, STATISTICS, seed)
        assert judged is not None
        assert (judged.shape, judged.dtype) == ((32, 32), torch.uint8)
        assert ((seen[0] > 127) == (judged == 1)).float().mean() > 0.97  # edges are blurred by the resize


def test_a_random_window_keeps_the_scale_and_what_lies_beyond_the_image_is_not_judged() -> None:
    image, mask = drawn(24, 64)
    seen, judged = augment(image, mask, Recipe(crop="random"), 32, STATISTICS, seed=0)
    assert judged is not None
    outside = judged == IGNORE
    assert outside.sum() == 8 * 32
    assert torch.equal(seen[0][~outside] == 255, judged[~outside] == 1)
    assert set(seen[:, outside].T.unique(dim=0).flatten().tolist()) == {128, 64, 191}
    assert padded(image, mask, 16, STATISTICS.mean)[0] is image


def test_boxes_may_be_kept_square() -> None:
    """A ramp over a square image, cut with one aspect: as many grey levels down as across."""
    ramp = torch.arange(64, dtype=torch.uint8) * 4
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), ramp.expand(64, 64)])
    for seed in range(20):
        recipe = Recipe(crop="random_resized", scale=(0.1, 0.9), least_aspect=1)
        seen = augment(image, None, recipe, 32, STATISTICS, seed)[0].int()
        across, down = seen[0, 0, -1] - seen[0, 0, 0], seen[1, -1, 0] - seen[1, 0, 0]
        assert abs(int(across - down)) <= 8


@pytest.mark.parametrize(("height", "width"), [(40, 56), (301, 224), (17, 90), (1, 1)])
def test_the_whole_image_is_prepared_as_for_frozen_features(height: int, width: int) -> None:
    image = picture(height, width)
    if (height, width) != (1, 1):
        assert torch.equal(prepare(image, None, SIZE, "whole")[0], prepare_image(image, SIZE))
    assert prepare(image, None, SIZE, "whole")[0].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize(("height", "width"), [(40, 56), (301, 224), (17, 91)])
def test_the_centre_is_that_of_torchvision(height: int, width: int) -> None:
    image = picture(height, width)
    usual = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])(image)
    ours = prepare(image, None, 224, "centre_crop")[0]
    shift = (ours.int() - usual.int()).abs().float()  # the longer side may be rounded otherwise by a pixel
    assert shift.mean() < 1.5


def test_masks_are_prepared_with_their_images() -> None:
    image, mask = drawn()
    for how in ("whole", "centre_crop", "native"):
        seen, judged = prepare(image, mask, 32, how)
        assert judged is not None
        assert seen.shape[1:] == judged.shape
        assert ((seen[0] > 127) == (judged == 1)).float().mean() > 0.97
    assert prepare(image, mask, 32, "native")[0] is image


def test_rand_augment_is_that_of_timm_and_leaves_the_generators_alone() -> None:
    image = picture(SIZE, SIZE)
    words = "rand-m9-mstd0.5-inc1"
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    ours = [rand_augment(image, words, STATISTICS.mean, seed) for seed in range(8)]
    follows = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    assert follows == (random.random(), np.random.rand())  # noqa: NPY002
    transform = rand_augment_transform(words, {"img_mean": (128, 64, 191), "translate_const": 10})
    for seed, changed in enumerate(ours):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        expected = transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
        assert torch.equal(changed, torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert any(not torch.equal(changed, image) for changed in ours)


@pytest.mark.parametrize("noise", [True, False])
def test_erasing_fills_one_rectangle_with_the_statistics_of_the_set(noise: bool) -> None:
    values, shares = [], []
    for seed in range(60):
        image = torch.full((3, 40, 50), 7, dtype=torch.uint8)
        erase_(image, STATISTICS, noise=noise, rng=random.Random(seed))
        erased = (image != 7).any(dim=0)
        rows, columns = erased.any(dim=1), erased.any(dim=0)
        assert erased.sum() == rows.sum() * columns.sum()
        shares.append(float(erased.float().mean()))
        values.append(image[:, erased])
    assert ERASED_AREA[0] * 0.8 < min(shares) < 0.1 < 0.25 < max(shares) < ERASED_AREA[1] * 1.1
    found = torch.cat(values, dim=1).float() / 255
    assert torch.allclose(found.mean(dim=1), torch.tensor(STATISTICS.mean), atol=0.01)
    assert torch.allclose(found.std(dim=1), torch.tensor(STATISTICS.std) * noise, atol=0.01)


def test_erasing_happens_as_often_as_asked() -> None:
    plain = augment(picture(), None, Recipe(), SIZE, STATISTICS, seed=0)[0]
    erased = [
        not torch.equal(augment(picture(), None, Recipe(erasing=0.25), SIZE, STATISTICS, seed)[0], plain)
        for seed in range(400)
    ]
    assert 70 < sum(erased) < 130


def test_colours_change_after_rand_augment_too() -> None:
    both = Recipe(rand_augment="rand-m9", grayscale=1.0)
    grey = augment(picture(), None, both, SIZE, STATISTICS, seed=2)[0]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


def test_a_policy_is_overridden_part_by_part() -> None:
    recipe = AugmentConfig(policy="medpeft_adamw", erasing=0, hflip=0.0, scale=(0.5, 1.0)).recipe()
    assert (recipe.erasing, recipe.hflip, recipe.scale) == (0, 0, (0.5, 1.0))
    assert recipe.rand_augment == "rand-m9-mstd0.5-inc1"
    assert AugmentConfig(policy="apla").recipe() == RECIPES["apla"]
    assert AugmentConfig(policy="apla").recipe().scale == (0.8, 1.2)


@pytest.mark.parametrize(
    "words", ["rand-m9-mstd0.5-inc1", "rand-m5-n3-p0.7", "rand-mstdinf-tweights", "none"]
)
def test_what_timm_understands_is_accepted(words: str) -> None:
    assert AugmentConfig(rand_augment=words).recipe().rand_augment == words
    if words != "none":
        rand_augment(picture(SIZE, SIZE), words, STATISTICS.mean, 0)


@pytest.mark.parametrize("words", ["rand", "rnd-m9", "rand-9", "rand-m", "rand-x3", "augmix-m3", "rand m9"])
def test_what_timm_does_not_understand_is_refused(words: str) -> None:
    with pytest.raises(ValidationError, match="none of timm's RandAugment strings"):
        AugmentConfig(rand_augment=words)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.1)])
def test_impossible_scales_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="0 < least <= most"):
        AugmentConfig(scale=scale)


def test_what_masks_cannot_follow_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"set data\.augment\.rand_augment=none"):
        AugmentConfig(policy="medpeft_adamw").recipe(masks=True)
    with pytest.raises(UsageError, match=r"set data\.augment\.erasing=0"):
        AugmentConfig(policy="medpeft_adamw", rand_augment="none").recipe(masks=True)
    AugmentConfig(policy="medpeft_adamw", rand_augment="none", erasing=0).recipe(masks=True)
