"""One process of a job of ``essa scale``: a run of ``essa adapt`` with the engine's own records, and a profile of its last steps.

``python -m essa_dist.scaling.rank FOLDER WARMUP CONFIG.yaml WORD...`` under any launcher; rank 0 writes FOLDER/result.json.
"""

import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

import essa_dist  # noqa: F401  (makes torchvision importable)
from essa_dist import runfolder
from essa_dist.disk import write_whole
from essa_dist.distributed.collectives import leave, rank, world_size
from essa_dist.distributed.first_cause import is_broken_collective
from essa_dist.engine.adapt import Adaptation
from essa_dist.engine.build import Training
from essa_dist.engine.config import RunConfig
from essa_dist.engine.recording.record import versions
from essa_dist.engine.train import Run, run_job
from essa_dist.engine.watching.signals import stop_signals
from essa_dist.objectives import StepValues
from essa_dist.scaling.jobs import PROFILED, RESULT
from essa_dist.scaling.split import StepProfile
from essa_dist.settings import load


class Measured(Adaptation):
    """An adaptation whose last steps are profiled."""

    def build(self, accelerator: Accelerator, *, restored: bool = False) -> Training:
        training = super().build(accelerator, restored=restored)
        self.profile = StepProfile(training.strategy, accelerator.device)
        self.first = training.total_steps - PROFILED
        return training

    def values(self, step: int, training: Training) -> StepValues:
        if step == self.first:
            self.profile.start()
        return super().values(step, training)

    def finish(self, run: Run) -> dict[str, Any]:
        parts: list[dict[str, float]] = [{} for _ in range(world_size())]
        own = {name: seconds / PROFILED for name, seconds in self.profile.stop().items()}
        if world_size() > 1:
            dist.all_gather_object(parts, own)
        else:
            parts = [own]
        names = dict.fromkeys(name for part in parts for name in part)
        mean = {name: statistics.fmean(part.get(name, 0.0) for part in parts) for name in names}
        return {"parts": mean, "strategy": run.training.strategy.name}


def main(folder: Path, warmup: int, words: list[str]) -> None:
    """Train, and keep what was measured; the run's own folder is removed, for it may be large."""
    config = load(RunConfig, Path(words[0]), words[1:])
    with stop_signals() as signals:
        found = run_job(Measured(config), signals)
    if rank() == 0:
        write_whole(folder / RESULT, json.dumps(result(config, found, warmup)))
        shutil.rmtree(config.out)
    leave()


def result(config: RunConfig, found: dict[str, Any], warmup: int) -> dict[str, Any]:
    """Of the window behind the warm-up: seconds of a step, as the slowest rank has them; and the split of the profiled steps."""
    rows = {row["step"]: row for row in map(json.loads, (Path(config.out) / runfolder.RANKS).open())}
    warm, timed, profiled = rows[warmup], rows[2 * warmup], rows[2 * warmup + PROFILED]
    step_s = max(timed["step_s"])
    data_s = max(timed["data_wait_s"])
    inside = statistics.fmean(profiled["step_s"]) - statistics.fmean(profiled["data_wait_s"])
    computed = {name: (step_s - data_s) * s / inside for name, s in found["parts"].items()}
    split = {"data": data_s, **computed}
    cuda = torch.cuda.is_initialized()
    return {
        "processes": world_size(),
        "strategy": found["strategy"],
        "batch_size": config.batch_size,
        "step_s": step_s,
        "split_s": split | {"other": max(0.0, step_s - sum(split.values()))},
        "sent_bytes": max(warm.get("comm_bytes", [0.0])),
        "peak_gib": max(timed["peak_memory_gib"]),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": versions(),
    }


def own_cause(error: BaseException) -> str:
    """In one line, with the time before it, so that the first of several ranks can be told."""
    return f"{time.time():.3f} {type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    job = Path(sys.argv[1])
    try:
        main(job, int(sys.argv[2]), sys.argv[3:])
    except Exception as error:
        if not is_broken_collective(error):
            (job / f"cause{os.environ.get('RANK', '0')}.txt").write_text(own_cause(error))
        raise
