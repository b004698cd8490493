"""Trunks for grey and multi-channel images see what the RGB trunk saw."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from essa_dist.backbones import Backbone, BackboneConfig, build, build_backbone
from essa_dist.backbones.channels import adapt_patch_embed, adapt_statistics
from essa_dist.backbones.weights import EMBEDDED
from essa_dist.data.batch import normalise
from essa_dist.errors import UsageError, WeightsError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH, PATCH = 5, 4


def patch_embed(channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, channels, PATCH, PATCH, generator=generator)
    return weight, torch.randn(WIDTH, generator=generator)


def embed(
    pixels_BCHW: Tensor, weight: Tensor, bias: Tensor | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Pixels 0..1 to patch features, the long way."""
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return torch.nn.functional.conv2d((pixels_BCHW - mean_C11) / std_C11, weight, bias, stride=PATCH)


def grey(channels: int) -> Tensor:
    return torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(1)).expand(-1, channels, -1, -1)


def test_one_channel_gives_what_its_repetition_gave() -> None:
    weight, bias = patch_embed()
    expected = embed(grey(3), weight, bias, MEAN, STD)
    weight, new_bias, mean, std, rule = adapt_patch_embed(weight, bias, MEAN, STD, 1)
    assert weight.shape == (WIDTH, 1, PATCH, PATCH)
    assert (mean, std) == (pytest.approx((0.449,)), pytest.approx((0.226,)))
    assert rule == "3 -> 1 channels: summed, with their means and deviations folded into weight and bias"
    torch.testing.assert_close(embed(grey(1), weight, new_bias, mean, std), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 3, 4, 7])
def test_more_channels_give_what_the_one_gave(channels: int) -> None:
    weight, bias = patch_embed(1)
    expected = embed(grey(1), weight, bias, (0.4,), (0.2,))
    weight, new_bias, mean, std, rule = adapt_patch_embed(weight, bias, (0.4,), (0.2,), channels)
    assert weight.shape[1] == len(mean) == len(std) == channels
    assert rule is not None
    torch.testing.assert_close(
        embed(grey(channels), weight, new_bias, mean, std), expected, rtol=0, atol=1e-5
    )


def test_other_numbers_repeat_the_channels_in_turn() -> None:
    weight, bias = patch_embed()
    wide, same_bias, mean, std, rule = adapt_patch_embed(weight, bias, MEAN, STD, 5)
    for channel in range(5):
        torch.testing.assert_close(wide[:, channel], weight[:, channel % 3] * 3 / 5)
    assert same_bias is bias
    assert mean == (*MEAN, *MEAN[:2])
    assert std == (*STD, *STD[:2])
    assert rule == "3 -> 5 channels: repeated in turn, scaled by 3/5"


def test_as_many_channels_are_left_alone() -> None:
    weight, bias = patch_embed()
    assert adapt_patch_embed(weight, bias, MEAN, STD, 3) == (weight, bias, MEAN, STD, None)


def test_without_a_bias_only_channels_of_one_mean_are_summed() -> None:
    weight, _ = patch_embed()
    with pytest.raises(WeightsError, match="no bias"):
        adapt_patch_embed(weight, None, MEAN, STD, 1)
    same = (0.5, 0.5, 0.5)
    summed, bias, mean, std, _ = adapt_patch_embed(weight, None, same, STD, 1)
    assert bias is None
    expected = embed(grey(3), weight, None, same, STD)
    torch.testing.assert_close(embed(grey(1), summed, None, mean, std), expected, rtol=0, atol=1e-5)


def test_statistics_are_averaged_repeated_or_kept() -> None:
    assert adapt_statistics((0.1, 0.2, 0.6), (0.3, 0.2, 0.1), 1) == (
        pytest.approx((0.3,)),
        pytest.approx((0.2,)),
    )
    assert adapt_statistics((0.1,), (0.2,), 3) == ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2))
    assert adapt_statistics(MEAN, STD, 3) == (MEAN, STD)


@torch.no_grad()
def features(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Patch features of uint8 [B, 3, H, W], as precise as the backbone's own numbers."""
    dtype = backbone.mask_token.dtype
    scaled = pixels[:, : backbone.in_chans].to(dtype) / 255
    mean, std = (torch.tensor(values, dtype=dtype).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
    patches: Tensor = backbone.eval()((scaled - mean) / std).patches
    return patches


@pytest.fixture(scope="module")
def pair() -> tuple[Backbone, Backbone]:
    """ViT-Ti with the embedded weights for three channels and for one, both with ImageNet's statistics of three."""
    name, file = "vit_tiny_patch16_224", str(EMBEDDED["vit_tiny_patch16_224"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("essa_dist.backbones.vit.shipped_statistics", lambda vit: (MEAN, STD))
        patched.setattr("essa_dist.backbones.weights.shipped_statistics", lambda vit: (MEAN, STD))
        colour = build_backbone(BackboneConfig(name=name, weights=file))
        return colour, build_backbone(BackboneConfig(name=name, weights=file, in_chans=1))


def test_a_grey_vit_has_the_rgb_vits_features_of_grey_images(pair: tuple[Backbone, Backbone]) -> None:
    colour, one = pair
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (2, 1, 32, 48), dtype=torch.uint8, generator=generator).expand(
        -1, 3, -1, -1
    )
    # In fp64: over 12 blocks fp32 loses 5e-5 of features up to 15, in either model.
    both = (features(copy.deepcopy(model).double(), pixels) for model in (one, colour))
    torch.testing.assert_close(*both, rtol=0, atol=1e-5)


def test_the_backbone_says_how_its_channels_were_made(pair: tuple[Backbone, Backbone]) -> None:
    colour, one = pair
    assert (colour.in_chans, colour.channel_rule, one.in_chans) == (3, None, 1)
    assert len(one.mean) == len(one.std) == 1
    assert one.load_report is not None
    name, was, now, rule = one.load_report.resized[0]
    assert (name, was, now) == ("patch_embed.proj.weight", (192, 3, 16, 16), (192, 1, 16, 16))
    assert rule == one.channel_rule


def test_a_file_of_grey_weights_serves_colour_and_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    monkeypatch.setitem(build.ALIASES, "tiny", ("vit_tiny_patch16_224", shape))
    grey_vit = build_backbone(BackboneConfig(name="tiny", weights="random", in_chans=1))
    save_file(grey_vit.vit.state_dict(), tmp_path / "w.safetensors")
    same, colour = (
        build_backbone(BackboneConfig(name="tiny", weights=str(tmp_path / "w.safetensors"), in_chans=n))
        for n in (1, 3)
    )
    assert (same.channel_rule, same.mean) == (None, grey_vit.mean)
    assert colour.channel_rule == "1 -> 3 channels: repeated in turn, scaled by 1/3"
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)
    torch.testing.assert_close(features(colour, pixels), features(same, pixels), rtol=0, atol=1e-5)


def test_colour_becomes_grey_by_the_luma_of_bt601() -> None:
    pixels = torch.randint(0, 256, (2, 4, 3, 5, 6), dtype=torch.uint8)
    red, green, blue = pixels.double().unbind(2)
    expected = ((0.299 * red + 0.587 * green + 0.114 * blue) / 255 - 0.4) / 0.2
    torch.testing.assert_close(
        normalise(pixels, (0.4,), (0.2,)).double(), expected[:, :, None], rtol=0, atol=1e-5
    )


def test_packed_images_have_no_other_number_of_channels() -> None:
    with pytest.raises(UsageError, match=r"backbone.in_chans=4: packed images have 3 channels"):
        normalise(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (0.5,) * 4, (0.5,) * 4)


def test_statistics_of_another_number_than_the_channels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"backbone.mean has 3 values, and backbone.in_chans is 1"):
        build_backbone(BackboneConfig(name="test_vit", weights="random", in_chans=1, mean=MEAN))
