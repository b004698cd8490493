"""Augmentation's promises: a pure function of image, settings and seed, distributed as DINOv2's."""

import random
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import v2

from essa_dist.data import augment, colour
from essa_dist.data.augment import POLICIES, CropConfig, Policy, Views, crop_box, make_crops

SMALL = CropConfig(global_size=24, local_size=10, n_local=3)
NOTHING = Policy(
    hflip=0,
    vflip=0,
    rotate=False,
    jitter=0,
    brightness=0,
    contrast=0,
    saturation=0,
    hue=0,
    grayscale=0,
    blur=Views(0, 0, 0),
    solarise=Views(0, 0, 0),
)


def photo(height: int = 40, width: int = 50) -> Tensor:
    coarse = torch.randint(
        0, 256, (1, 3, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    size = (max(height, 2), max(width, 2))  # torch fails to make a single pixel
    whole = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", antialias=True)[0]
    return whole[:, :height, :width]


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[int]:
    """How many times a function is called, as a list that grows."""
    calls: list[int] = []
    original: Callable[..., object] = getattr(owner, name)

    def counting(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


@pytest.mark.parametrize("policy", POLICIES)
def test_crops_have_the_asked_shapes_and_are_uint8(policy: str) -> None:
    globals_, locals_ = make_crops(photo(), SMALL.model_copy(update={"policy": policy}), seed=1)
    assert (globals_.shape, locals_.shape) == ((2, 3, 24, 24), (3, 3, 10, 10))
    assert globals_.dtype == locals_.dtype == torch.uint8


def test_no_local_crops_is_an_empty_tensor() -> None:
    assert make_crops(photo(), CropConfig(n_local=0, global_size=16), 0)[1].shape == (0, 3, 98, 98)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(policy: str) -> None:
    config = SMALL.model_copy(update={"policy": policy})
    first, again, other = (make_crops(photo(), config, seed) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_process_generators_are_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    first = make_crops(photo(), SMALL, 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(99)
    assert torch.equal(make_crops(photo(), SMALL, 3)[0], first[0])


def test_the_image_itself_is_not_changed() -> None:
    image = photo()
    for seed in range(8):
        make_crops(image, SMALL.model_copy(update={"global_scale": (1.0, 1.0), "global_size": 40}), seed)
    assert torch.equal(image, photo())


def test_memory_layout_does_not_change_the_crops_by_more_than_a_grey_level() -> None:
    interleaved = photo().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    config = SMALL.model_copy(update={"policy": "medical"})
    one, two = make_crops(photo(), config, 2)[0].int(), make_crops(interleaved, config, 2)[0].int()
    assert (one - two).abs().max() <= 1


def test_without_changes_a_crop_is_torchvisions_resized_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "dinov2", NOTHING)
    globals_, _ = make_crops(photo(), SMALL, seed=7)
    box = crop_box(40, 50, SMALL.global_scale, random.Random(7))
    expected = v2.functional.resized_crop(
        photo(), *box, [24, 24], interpolation=v2.InterpolationMode.BICUBIC, antialias=True
    )
    assert torch.equal(globals_[0], expected)


def test_changes_in_sequence_equal_torchvisions_within_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    amounts = {"brightness_": 1.2, "contrast_": 0.7, "saturation_": 1.1, "hue_": 0.05}
    monkeypatch.setitem(
        POLICIES, "dinov2", NOTHING.__class__(**{**NOTHING.__dict__, "jitter": 1, "blur": Views(1, 1, 1)})
    )
    for name, amount in amounts.items():
        original = getattr(colour, name)
        monkeypatch.setattr(colour, name, lambda x, _, original=original, amount=amount: original(x, amount))
    monkeypatch.setattr(random.Random, "shuffle", lambda self, items: None)
    monkeypatch.setattr(augment, "BLUR_SIGMA", (1.5, 1.5))
    globals_, _ = make_crops(photo(), SMALL, seed=7)
    box = crop_box(40, 50, SMALL.global_scale, random.Random(7))
    f = v2.functional
    x = (
        f.resized_crop(photo(), *box, [24, 24], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        / 255
    )
    x = f.adjust_hue(f.adjust_saturation(f.adjust_contrast(f.adjust_brightness(x, 1.2), 0.7), 1.1), 0.05)
    expected = (f.gaussian_blur(x, [9, 9], [1.5, 1.5]) * 255).round().int()
    assert (globals_[0].int() - expected).abs().max() <= 1


def test_boxes_lie_inside_and_are_distributed_as_torchvisions() -> None:
    rng, n, scale = random.Random(0), 4000, (0.05, 0.32)
    ours = torch.tensor([crop_box(60, 90, scale, rng) for _ in range(n)], dtype=torch.float64)
    torch.manual_seed(0)
    theirs = torch.tensor([torchvision_box(60, 90, scale) for _ in range(n)], dtype=torch.float64)
    top, left, height, width = ours.unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= 60
    assert (left + width).max() <= 90
    for column in range(4):
        spread = ours[:, column].std() / n**0.5
        assert (ours[:, column].mean() - theirs[:, column].mean()).abs() < 6 * spread


def torchvision_box(height: int, width: int, scale: tuple[float, float]) -> list[int]:
    box = v2.RandomResizedCrop(10, scale=scale).make_params([torch.empty(3, height, width)])
    return [box[name] for name in ("top", "left", "height", "width")]


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (9, 11)])
def test_images_smaller_or_narrower_than_the_crops_are_fine(size: tuple[int, int]) -> None:
    globals_, locals_ = make_crops(photo(*size), SMALL, 0)
    assert (globals_.shape, locals_.shape) == ((2, 3, 24, 24), (3, 3, 10, 10))


def test_resize_makes_the_image_square_first() -> None:
    config = CropConfig(global_size=16, n_local=0, resize=32)
    squeezed = torch.nn.functional.interpolate(
        photo(40, 90)[None], size=(32, 32), mode="bicubic", antialias=True
    )[0]
    plain = config.model_copy(update={"resize": None})
    assert torch.equal(make_crops(photo(40, 90), config, 4)[0], make_crops(squeezed, plain, 4)[0])


SHARES = {  # view: (global 1, global 2, local); DINOv2's blur is the inverse of what its code names
    ("dinov2", "blur"): (0.0, 0.9, 0.5),
    ("as_named", "blur"): (1.0, 0.1, 0.5),
    ("medical", "blur"): (0.5, 0.1, 0.3),
    ("dinov2", "solarise"): (0.0, 0.2, 0.0),
    ("as_named", "solarise"): (0.0, 0.2, 0.0),
    ("medical", "solarise"): (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize(("policy", "change"), SHARES)
@pytest.mark.parametrize("view", [0, 1, 2])
def test_blur_and_solarisation_happen_as_often_as_each_policy_says(
    policy: str, change: str, view: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, rng, n = count_calls(monkeypatch, colour, change), random.Random(0), 300
    out, image = torch.empty(3, 8, 8, dtype=torch.uint8), photo(12, 12)
    for _ in range(n):
        augment._fill(out, image, (0.5, 1.0), POLICIES[policy], view, rng)
    expected = SHARES[policy, change][view]
    assert abs(len(calls) / n - expected) <= 4 * (expected * (1 - expected) / n) ** 0.5


@pytest.mark.parametrize(
    ("policy", "name", "share"),
    [
        ("dinov2", "hue_", 0.8),
        ("medical", "hue_", 0.8),
        ("dinov2", "grayscale_", 0.2),
        ("as_named", "grayscale_", 0.2),
        ("medical", "grayscale_", 0.0),
    ],
)
def test_colour_changes_happen_as_often_as_each_policy_says(
    policy: str, name: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, n = count_calls(monkeypatch, colour, name), 200
    config = CropConfig(policy=policy, global_size=8, n_local=0)
    for seed in range(n):
        make_crops(photo(12, 12), config, seed)
    assert abs(len(calls) / (2 * n) - share) <= 4 * (share * (1 - share) / (2 * n)) ** 0.5


def test_dinov2_and_as_named_differ_in_blur_alone() -> None:
    ours, named = POLICIES["dinov2"].__dict__, POLICIES["as_named"].__dict__
    assert {name for name in ours if ours[name] != named[name]} == {"blur"}
    assert [ours[name] for name in ("hflip", "vflip", "rotate")] == [0.5, 0, False]
    assert [ours[name] for name in ("brightness", "contrast", "saturation", "hue")] == [0.4, 0.4, 0.2, 0.1]


def test_medical_turns_every_way_and_dinov2_only_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    corner = torch.zeros(3, 8, 8, dtype=torch.uint8)
    corner[:, 0, 1] = 255  # no symmetry maps this pixel to itself
    rng = random.Random(0)
    seen = {
        name: {int(augment._turn(corner, policy, rng)[0].flatten().argmax()) for _ in range(200)}
        for name, policy in POLICIES.items()
    }
    assert len(seen["medical"]) == 8
    assert len(seen["dinov2"]) == len(seen["as_named"]) == 2


def test_factors_stay_in_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {name: [] for name in ("brightness_", "contrast_", "saturation_", "hue_")}
    for name, amounts in seen.items():
        monkeypatch.setattr(colour, name, lambda pixels, amount, amounts=amounts: amounts.append(amount))
    for seed in range(150):
        augment._jitter_(torch.zeros(3, 2, 2), POLICIES["dinov2"], random.Random(seed))
    for name, low, high in (
        ("brightness_", 0.6, 1.4),
        ("contrast_", 0.6, 1.4),
        ("saturation_", 0.8, 1.2),
        ("hue_", -0.1, 0.1),
    ):
        middle, reach = (low + high) / 2, (high - low) / 2
        assert low <= min(seen[name]) < middle - 0.9 * reach, name
        assert high >= max(seen[name]) > middle + 0.9 * reach, name


def test_the_four_colour_changes_come_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("brightness_", "contrast_", "saturation_", "hue_"):
        monkeypatch.setattr(colour, name, lambda pixels, amount, name=name: order.append(name))
    rng = random.Random(0)
    for _ in range(400):
        augment._jitter_(torch.zeros(3, 2, 2), POLICIES["medical"], rng)
    assert len({tuple(order[i : i + 4]) for i in range(0, 1600, 4)}) == 24


@pytest.mark.parametrize("scale", [(0.5, 0.2), (-0.1, 0.5), (0.5, 1.5), (0.0, 0.0)])
def test_impossible_scales_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match=r"0 < least <= most <= 1"):
        CropConfig(local_scale=scale)
