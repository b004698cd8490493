"""What is tried before it is used."""

import logging

import pytest
import torch

from essa_dist.backbones.quantised.products import _products_are_right
from essa_dist.kernels import _compiles, fused, works

CPU = torch.device("cpu")


def test_a_kernel_that_fails_or_is_wrong_is_left_out_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    def fails(device: torch.device) -> bool:
        calls.append(device)
        raise RuntimeError("no such kernel\nand a long story")

    with caplog.at_level(logging.WARNING):
        assert [works("kernel A", fails, CPU) for _ in range(3)] == [False] * 3
        assert not works("kernel B", lambda device: False, CPU)
        assert works("kernel C", lambda device: True, CPU)
    assert calls == [CPU]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "kernel A is left out, a slower way gives the same: no such kernel",
        "kernel B is left out, a slower way gives the same: its result on a small case is wrong",
    ]


def test_on_a_cpu_nothing_is_compiled() -> None:
    assert fused(torch.sin, torch.zeros(1)) is torch.sin


def test_the_trial_of_products_in_8_bits_is_right_where_torch_emulates_them() -> None:
    assert _products_are_right(CPU)


def test_the_trial_of_the_compiler_compares_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert _compiles(CPU)
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: function(x) + 1)
    assert not _compiles(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_tried_on_this_gpu_works() -> None:
    from essa_dist.backbones.packed import flash_varlen
    from essa_dist.backbones.quantised.products import multiplies_fp8

    device = torch.device("cuda", 0)
    capability = torch.cuda.get_device_capability(device)
    assert flash_varlen(device, torch.bfloat16) == (capability >= (8, 0))
    assert multiplies_fp8(device) == (capability >= (8, 9))
    assert _compiles(device)
