"""``essa bench step``: one configuration's training step in this process, or in each that a launcher started.

Crops are noise, weights random, data loading is left out: this times teacher, student, backward, update and EMA. The peaks
of the machine are measured beside it.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from pydantic import Field

from essa_dist.bench.clock import spread
from essa_dist.bench.machine import check_out, machine, write_result
from essa_dist.bench.peaks import Peaks, measure_peaks
from essa_dist.bench.subject import Subject
from essa_dist.distributed.collectives import all_reduce_max, leave, rank
from essa_dist.engine.config import RunConfig
from essa_dist.errors import UsageError
from essa_dist.kernels import TRIED
from essa_dist.planning.choices import Case, Choices
from essa_dist.planning.devices import CPU, read_table
from essa_dist.planning.plan import facts_of, read_words
from essa_dist.progress import GIB, memory_gib
from essa_dist.settings import Config


class BenchStepConfig(Config):
    """Words that are not named here are those of `essa adapt`: its config file and settings. Needs no data."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`, given as they are."""
    warmup: int = Field(2, ge=1)
    """Steps before those that are timed; the first makes the optimizer's state."""
    steps: int = Field(5, ge=1)
    """Steps that are timed."""
    peaks: bool = True
    """Measure the machine's own peaks too, for the achieved share."""
    count: bool = True
    """Count the arithmetic of a step, on fake tensors: seconds."""
    sizes: bool = False
    """Tell what an adapter's file and a checkpoint take."""
    largest: bool = False
    """Search the largest batch that fits too, to an eighth; one GPU."""
    out: str = ""
    """JSON file to write; empty: none."""


def bench_step(config: BenchStepConfig) -> dict[str, Any]:
    """Times and memory of the step; on all ranks, and rank 0's are told, with the largest memory of all.

    Raises UsageError as ``essa adapt`` does.
    """
    check_out(config.out)
    run = read_words(config.run)
    if config.largest and (run.device == "cpu" or not torch.cuda.is_available()):
        raise UsageError(
            "largest=true tries until a GPU's memory is full, and there is none: ask essa plan instead"
        )
    subject = Subject(run)
    processes = subject.strategy.accelerator.num_processes
    if config.largest and processes > 1:
        raise UsageError(f"largest=true is for one process, not for {processes}: ask essa plan instead")
    found = _measured(subject, config)
    # Behind the steps: what it takes would be in their peak of memory.
    peaks = measure_peaks(subject.device, subject.dtype) if config.peaks else None
    if config.largest:
        found["largest_batch"] = largest(lambda images: _fits(subject, images), subject.images)
    if config.sizes:
        found |= subject.sizes()
    result = {
        **facts_of(run),
        "engine": run.engine.model_dump(mode="json"),
        "config": run.model_dump(mode="json"),
        "strategy": subject.strategy.name,
        "processes": processes,
        **found,
        "kernels": dict(TRIED),
        "machine": machine(subject.device),
    }
    leave()  # what is counted next would meet the collectives of the other ranks
    if rank() == 0 and config.count:
        result["tflop_per_image"] = tflop_per_image(run, gpu=subject.device.type == "cuda")
    result |= _shares(result, peaks)
    result["table"] = list(_lines(result))
    write_result(config.out, result)
    return result


def _measured(subject: Subject, config: BenchStepConfig) -> dict[str, Any]:
    """Rank 0's seconds, and the memory of the rank that takes most."""
    cuda = subject.device.type == "cuda"
    batches = subject.batches()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for batch in islice(batches, config.warmup + config.steps):
        subject.run(batch)
    laps = subject.clock.read()[config.warmup :]
    reserved = torch.cuda.max_memory_reserved() / GIB if cuda else 0.0
    memory = torch.tensor([memory_gib(peak=True), reserved], dtype=torch.float64)
    peak, reserved = all_reduce_max(memory.to(subject.device)).tolist()
    seconds = [sum(lap.values()) for lap in laps]
    trained = subject.training.trained
    return {
        "step_s": spread(seconds),
        "steps_s": seconds,
        "phases_s": {name: spread([lap[name] for lap in laps])["median"] for name in laps[0]},
        "img_per_s": subject.config.batch_size / spread(seconds)["median"],
        "peak_gib": peak,
        **({"reserved_gib": reserved} if cuda else {}),
        "trained_trunk": trained.trunk,
        "trained_share": trained.trunk / subject.training.trunk.parameters,
        "trained_heads": trained.heads,
    }


def _shares(result: dict[str, Any], peaks: Peaks | None) -> dict[str, Any]:
    """What was achieved of the machine's peak; of several processes each has a machine's share to itself."""
    found: dict[str, Any] = {"peaks": peaks._asdict()} if peaks else {}
    if "tflop_per_image" in result:
        found["tflops"] = result["tflop_per_image"] * result["img_per_s"] / result["processes"]
        if peaks:
            found["mfu"] = found["tflops"] / peaks.matmul_tflops
    return found


def tflop_per_image(run: RunConfig, *, gpu: bool) -> float:
    """Products of matrices in one update, an image, as the planner counts them: what is really computed, twice if twice."""
    table = read_table()
    choices = Choices(run, table.interconnect("infiniband_ndr"), per_machine=1)
    return choices.tflop_per_image(Case("gpu" if gpu else CPU, 1, table.device(CPU), 0.0))


def _fits(subject: Subject, images: int) -> bool:
    try:
        for batch in islice(subject.batches(images), 2):  # the optimizer's state appears in the first
            subject.run(batch)
    except torch.OutOfMemoryError:
        return False
    finally:
        subject.strategy.discard()
        subject.clock.read()
        torch.cuda.empty_cache()
    return True


def largest(fits: Callable[[int], bool], start: int) -> int:
    """The largest size that fits, to an eighth of itself; 0 if ``start`` and all below it are too large."""
    high = start
    while fits(high):
        high *= 2
    low = high // 2 if high > start else 0
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _lines(r: dict[str, Any]) -> Iterator[str]:
    step = r["step_s"]
    yield (
        f"{r['model']} + {r['adapter']}, {r['precision']}, {r['crops']}, batch {r['batch_size']}, "
        f"{r['strategy']} on {r['processes']} x {r['machine']['gpu'] or r['machine']['processor']}"
    )
    yield (
        f"{r['img_per_s']:.2f} img/s; a step takes {step['median']:.4g} s, {step['min']:.4g} to {step['max']:.4g} "
        f"in {len(r['steps_s'])} steps"
    )
    parts = ", ".join(f"{name} {s / step['median']:.0%}" for name, s in r["phases_s"].items())
    yield f"of it: {parts}"
    reserved = f", {r['reserved_gib']:.2f} GiB reserved" if "reserved_gib" in r else ""
    yield f"peak memory {r['peak_gib']:.2f} GiB{reserved}"
    yield f"trained: {r['trained_trunk']:,} of the trunk ({r['trained_share']:.2%}), {r['trained_heads']:,} of the heads"
    if "tflops" in r:
        share = f", {r['mfu']:.0%} of the machine's {r['peaks']['matmul_tflops']:.3g}" if "mfu" in r else ""
        yield f"{r['tflop_per_image']:.3g} TFLOP an image; {r['tflops']:.3g} TFLOP/s achieved{share}"
    if "largest_batch" in r:
        yield f"largest batch: {r['largest_batch']:,}"
    if "adapter_bytes" in r:
        yield f"adapter file {r['adapter_bytes'] / 1e6:.2f} MB, checkpoint {r['checkpoint_bytes'] / 1e6:.0f} MB"
