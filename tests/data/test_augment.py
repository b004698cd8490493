"""Augmentation's promises: a pure function of image, settings and seed, distributed as DINOv2's."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from essa_dist.data import augment, colour
from essa_dist.data.augment import apply_view, make_crops
from essa_dist.data.views import POLICIES, Box, CropConfig, Policy, Shares, View, crop_box, draw_views

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
    blur=Shares(0, 0, 0),
    solarise=Shares(0, 0, 0),
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


def test_changes_in_sequence_equal_torchvisions_within_rounding() -> None:
    box = Box(3, 5, 30, 36)
    view = View(
        box,
        hflip=False,
        vflip=False,
        quarter_turns=0,
        jitter=(("brightness", 1.2), ("hue", 0.05), ("contrast", 0.7), ("saturation", 1.1)),
        grey=False,
        sigma=1.5,
        solarise=False,
    )
    out = torch.empty(3, 24, 24, dtype=torch.uint8)
    apply_view(out, photo(), view)
    f = v2.functional
    x = (
        f.resized_crop(photo(), *box, [24, 24], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        / 255
    )
    x = f.adjust_saturation(f.adjust_contrast(f.adjust_hue(f.adjust_brightness(x, 1.2), 0.05), 0.7), 1.1)
    expected = (f.gaussian_blur(x, [9, 9], [1.5, 1.5]) * 255).round().int()
    assert (out.int() - expected).abs().max() <= 1


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


@pytest.mark.parametrize("change", ["blur", "solarise", "grayscale_", "hue_"])
def test_what_is_drawn_is_done(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [view for seed in range(40) for view in draw_views(SMALL, 40, 50, seed)]
    expected = {
        "blur": sum(view.sigma is not None for view in drawn),
        "solarise": sum(view.solarise for view in drawn),
        "grayscale_": sum(view.grey for view in drawn),
        "hue_": sum(bool(view.jitter) for view in drawn),
    }
    calls = count_calls(monkeypatch, colour, change)
    if change == "hue_":
        monkeypatch.setitem(augment.CHANGES, "hue", colour.hue_)
    for seed in range(40):
        make_crops(photo(), SMALL, seed)
    assert len(calls) == expected[change] > 0


def test_flips_come_before_quarter_turns_against_the_clock() -> None:
    corner = torch.zeros(3, 8, 8, dtype=torch.uint8)
    corner[:, 0, 1] = 255  # no symmetry maps this pixel to itself
    seen = set()
    for hflip, vflip, turns in [(h, v, t) for h in (False, True) for v in (False, True) for t in range(4)]:
        out = torch.empty(3, 8, 8, dtype=torch.uint8)
        view = View(Box(0, 0, 8, 8), hflip, vflip, turns, (), grey=False, sigma=None, solarise=False)
        apply_view(out, corner, view)
        x = v2.functional.horizontal_flip(corner) if hflip else corner
        x = v2.functional.vertical_flip(x) if vflip else x
        assert torch.equal(out, v2.functional.rotate(x, 90 * turns))
        seen.add(int(out[0].flatten().argmax()))
    assert len(seen) == 8
