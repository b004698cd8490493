"""``essa bench peaks``: the most this machine makes of a product of matrices and of a copy; what MFU is a share of."""

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from essa_dist.bench.clock import seconds_of
from essa_dist.bench.machine import check_out, chosen_device, machine, write_result
from essa_dist.engine.build import DTYPES
from essa_dist.settings import Config

SIDES = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048, 4096)}
"""Of square matrices; the best counts."""
COPIED = {"cuda": 2**30, "cpu": 2**28}
"""Bytes, more than caches hold."""
TURNS = 5


class Peaks(NamedTuple):
    matmul_tflops: float
    copy_gbs: float
    """Bytes read and written, in 1e9 a second."""


class BenchPeaksConfig(Config):
    """What is measured."""

    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of the matrices."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is one."""
    threads: int | None = Field(None, ge=1)
    """CPU threads (null: torch's choice)."""
    out: str = ""
    """JSON file to write; empty: none."""


def bench_peaks(config: BenchPeaksConfig) -> dict[str, Any]:
    """Both peaks, of one device and, on a CPU, one team of threads. Raises UsageError for a device that isn't there."""
    check_out(config.out)
    device = chosen_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    peaks = measure_peaks(device, DTYPES[config.precision])
    table = [
        f"matmul, {config.precision}: {peaks.matmul_tflops:.3g} TFLOP/s",
        f"copy: {peaks.copy_gbs:.3g} GB/s, read and written",
    ]
    result = {
        "table": table,
        **peaks._asdict(),
        "settings": config.model_dump(),
        "machine": machine(device),
    }
    write_result(config.out, result)
    return result


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The best of a few tries; 1 to 5 s."""
    rates = []
    for side in SIDES[device.type]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates.append(2 * side**3 / min(seconds_of(lambda a=a, b=b: a @ b, device, times=TURNS)))  # type: ignore[misc]
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = min(seconds_of(lambda: target.copy_(source), device, times=TURNS))
    return Peaks(max(rates) / 1e12, 2 * source.numel() / copy / 1e9)
