"""What is tried before it is used."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from essa_dist.backbones.quantised.products import _products_are_right
from essa_dist.kernels import TRIED, _compiles, fused, works

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
    assert TRIED["kernel A"] == "left out: no such kernel"
    assert TRIED["kernel C"] == "used"
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "kernel A is left out, a slower way gives the same: no such kernel",
        "kernel B is left out, a slower way gives the same: its result on a small case is wrong",
    ]


@pytest.mark.parametrize(
    "inside",
    [
        torch.no_grad,  # the teacher's pass, a step's first
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.float16),
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda kept: pytest.fail("seen"), lambda kept: kept),
    ],
)
def test_a_trial_is_the_same_wherever_it_is_asked_for(inside: Callable[[], Any]) -> None:
    state = torch.get_rng_state()
    with inside():
        assert works(f"products in {inside}", _products_are_right, CPU)
    assert torch.equal(
        torch.get_rng_state(), state
    )  # the run's numbers are the same with and without a trial


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
    from essa_dist.backbones.lean import _gelu_is_right, _norm_is_right
    from essa_dist.backbones.packed import flash_varlen
    from essa_dist.backbones.quantised.products import multiplies_fp8
    from essa_dist.losses.prototypes import _has_kernel

    device = torch.device("cuda", 0)
    capability = torch.cuda.get_device_capability(device)
    assert flash_varlen(device, torch.bfloat16) == (capability >= (8, 0))
    assert multiplies_fp8(device) == (capability >= (8, 9))
    assert _compiles(device)
    assert _has_kernel(device)
    assert works("norms in 8 bits", _norm_is_right, device) == (capability >= (8, 9))
    assert works("GELU in 8 bits", _gelu_is_right, device)
