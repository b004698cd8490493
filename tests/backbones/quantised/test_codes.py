"""Packing weights and unpacking them, against the definitions, number by number."""

import pytest
import torch
from torch import Tensor

from essa_dist.backbones.quantised import codes
from essa_dist.backbones.quantised.linear import KINDS, Kind

D, C = 20, 192
FP32 = torch.float32
PER_WEIGHT = {"fp8": 8.2, "int8": 8.2, "nf4": 4.4}
"""Bits, the scales of a layer of 512 x 1024 among them."""


def weights(rows: int = D, columns: int = C) -> Tensor:
    """Rows of very different sizes, one of them zero, and one that holds a single large number."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * torch.logspace(-4, 2, rows)[:, None]
    weight[3] = 0
    weight[5, 7] = 50 * weight[5].abs().max()
    return weight


def there_and_back(kind: Kind, weight: Tensor, dtype: torch.dtype = FP32) -> Tensor:
    layer = KINDS[kind]
    return layer.unpack(*layer.pack(weight), dtype)


def test_int8_is_the_nearest_of_255_even_steps_of_each_row() -> None:
    weight = weights()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((there_and_back("int8", weight) - weight).abs() <= 0.501 * step).all()


def test_fp8_is_the_nearest_e4m3_number_of_each_scaled_row() -> None:
    weight = weights()
    scale = weight.abs().amax(1, keepdim=True) / 448
    numbers = torch.arange(256, dtype=torch.uint8).view(codes.E4M3).float()
    levels = numbers[numbers.isfinite()].sort().values
    for row, size, found in zip(weight, scale, there_and_back("fp8", weight), strict=True):
        nearest = (row[:, None] - levels * size).abs().amin(1)
        torch.testing.assert_close((found - row).abs(), nearest, rtol=1e-3, atol=1e-6 * float(size) * 448)


def test_nf4_is_the_nearest_of_16_levels_of_each_block() -> None:
    weight = weights(C, C)  # 576 blocks: more than two groups, and the last is not full
    bits, packed, step, mean, pairs = codes.pack_nf4(weight)
    scales = (packed * step).flatten()[: weight.numel() // 64] + mean
    found = codes.unpack_nf4(bits, packed, step, mean, pairs, FP32).view(-1, 64)
    levels = torch.tensor(codes.NF4)
    for i, block in enumerate(weight.view(-1, 64)):
        expected = [min(codes.NF4, key=lambda v: abs(float(x) - v * float(scales[i]))) for x in block[::16]]
        if scales[i] > 1e-6:
            torch.testing.assert_close(found[i, ::16], torch.tensor(expected) * scales[i])
    assert torch.isin(pairs, levels).all()


def test_second_quantisation_moves_a_scale_by_half_a_step_of_its_group_at_most() -> None:
    weight = weights(C, C)
    _, packed, step, mean, _ = codes.pack_nf4(weight)
    exact = weight.view(-1, 64).abs().amax(1)
    found = (packed * step).flatten()[: len(exact)] + mean
    half = step.expand(packed.shape).flatten()[: len(exact)] / 2
    assert ((found - exact).abs() <= 1.001 * half + 1e-6 * exact.max()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_zero_or_finite(kind: Kind) -> None:
    weight = weights()
    found = there_and_back(kind, weight)
    assert found.isfinite().all()
    assert (found[3] == 0).all() if kind != "nf4" else (found[3].abs() < 1e-2 * weight.abs().max()).all()
    assert there_and_back(kind, torch.zeros(16, 64)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_unpacks_to_the_same_weight(kind: Kind, dtype: torch.dtype) -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
    found = there_and_back(kind, weight, dtype)
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), there_and_back(kind, weight), rtol=2**-6, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_weight_takes_the_bits_that_are_promised(kind: Kind) -> None:
    weight = torch.randn(512, 1024)
    bits = 8 * sum(t.nbytes for t in KINDS[kind].pack(weight)) / weight.numel()
    assert bits < PER_WEIGHT[kind]
