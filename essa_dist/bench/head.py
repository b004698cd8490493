"""``essa bench head``: projection heads and cross-entropies of a step, the slow and the fast way in turns.

The trunk's part is left out: its features are noise, of the rows that the crops and masks of the run give.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from pydantic import Field

from essa_dist.backbones.vit import Features
from essa_dist.bench.clock import seconds_of, spread
from essa_dist.bench.machine import MemoryPeak, check_out, machine, write_result
from essa_dist.bench.subject import VALUES, Subject
from essa_dist.bench.tables import markdown
from essa_dist.data.batch import Batch
from essa_dist.distributed.collectives import world_size
from essa_dist.engine.config import RunConfig
from essa_dist.errors import UsageError
from essa_dist.kernels import TRIED
from essa_dist.objectives.accumulation import TeacherRows
from essa_dist.planning.plan import read_words
from essa_dist.settings import Config


class BenchHeadConfig(Config):
    """Words that are not named here are those of `essa adapt`: objective.head.prototypes, batch_size, precision, device."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`, given as they are."""
    rounds: int = Field(3, ge=1)
    """Turns of each way."""
    times: int = Field(3, ge=1)
    """Passes of a turn that are timed."""
    out: str = ""
    """JSON file to write; empty: none."""


def bench_head(config: BenchHeadConfig) -> dict[str, Any]:
    """Seconds and memory above what is there before, of heads, targets, losses and their backward pass.

    Raises UsageError as ``essa adapt`` does, and under a launcher with several processes.
    """
    check_out(config.out)
    run = read_words(config.run)
    ways = {name: HeadsAlone(_with_fast(run, fast=fast)) for name, fast in (("slow", False), ("fast", True))}
    if world_size() > 1:
        raise UsageError(f"essa bench head is for one process, not for {world_size()}")
    device = ways["slow"].subject.device
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.rounds):
        for name, heads in ways.items():
            seconds[name] += seconds_of(heads.once, device, times=config.times)
            with MemoryPeak(device) as peak:
                heads.once()
            memory[name].append(peak.gib)
    rows = [
        {
            "way": name,
            "seconds": spread(seconds[name]),
            "speedup": spread(seconds["slow"])["median"] / spread(seconds[name])["median"],
            "peak_gib": spread(memory[name])["median"],
            "loss": ways[name].loss,
        }
        for name in ways
    ]
    result = {
        "benchmark": "head",
        "rows": rows,
        "kernels": dict(TRIED),
        "student_rows": ways["slow"].rows,
        "prototypes": run.objective.head.prototypes,
        "precision": run.precision,
        "settings": config.model_dump(mode="json"),
        "machine": machine(device),
    }
    result["table"] = list(_lines(result))
    write_result(config.out, result)
    return result


def _with_fast(run: RunConfig, *, fast: bool) -> RunConfig:
    engine = run.engine.model_copy(update={"fast": fast})
    # KoLeo looks at features, not at logits; and the trunk is not run.
    objective = run.objective.model_copy(update={"koleo_weight": 0.0})
    return run.model_copy(update={"engine": engine, "objective": objective, "accumulate": 1})


class HeadsAlone:
    """The objective of a run over features that are there."""

    def __init__(self, run: RunConfig) -> None:
        self.subject = subject = Subject(run)
        self.objective = objective = subject.objective
        (self.batch,) = islice(subject.batches(), 1)
        globals_, locals_ = (self._features(views) for views in _views(self.batch))
        self.features = [tensor for one in (globals_, locals_) if one for tensor in one]
        masks = self.batch.masks.flatten(0, 1) if run.objective.ibot_weight > 0 else None
        with torch.no_grad():
            seen = Features(*(torch.randn_like(tensor) for tensor in globals_ or ()))
        teacher = TeacherRows(seen.cls, None if masks is None else seen.patches[masks])
        given: Any = objective
        given.teacher_rows = lambda batch: teacher
        given.student_crops = lambda batch, *, seed: (globals_, locals_)
        masked = 0 if masks is None else int(masks.sum())
        self.rows = sum(map(len, (one.cls for one in (globals_, locals_) if one))) + masked
        self.loss = float("nan")

    def once(self) -> None:
        """Forward and backward; the gradients are dropped."""
        losses = self.objective.losses(self.batch, teacher_temp=VALUES.teacher_temp)
        losses["total"].backward()
        self.objective.settle(applied=False)
        self.objective.zero_grad(set_to_none=True)
        for tensor in self.features:
            tensor.grad = None
        self.loss = float(losses["total"].detach())

    def _features(self, crops: torch.Tensor | None) -> Features | None:
        if crops is None:
            return None
        backbone = self.objective.backbone
        images, tokens = len(crops), (crops.shape[-1] // backbone.patch_size) ** 2
        generator = torch.Generator(crops.device).manual_seed(images)
        shapes = (images, backbone.embed_dim), (images, tokens, backbone.embed_dim)
        made = (torch.randn(shape, device=crops.device, generator=generator) for shape in shapes)
        return Features(*(one.to(crops.dtype).requires_grad_() for one in made))


def _views(batch: Batch) -> Iterator[torch.Tensor | None]:
    """Global and local crops, each as one batch of images."""
    yield batch.global_crops.flatten(0, 1)
    yield batch.local_crops.flatten(0, 1) if len(batch.local_crops) else None


def _lines(r: dict[str, Any]) -> Iterator[str]:
    yield f"{r['prototypes']:,} prototypes, {r['student_rows']:,} student rows, {r['precision']}: heads, losses and backward"
    yield from markdown(
        ["way", "ms", "min - max", "speed-up", "memory GiB", "loss"],
        [
            [
                row["way"],
                f"{1e3 * row['seconds']['median']:.1f}",
                f"{1e3 * row['seconds']['min']:.1f} - {1e3 * row['seconds']['max']:.1f}",
                f"{row['speedup']:.2f}",
                f"{row['peak_gib']:.3f}",
                f"{row['loss']:.4f}",
            ]
            for row in r["rows"]
        ],
    )
