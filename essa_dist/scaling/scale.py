"""``essa scale``: how fast training is on 1, 2, 4 ... processes, where the time goes, and what the planner says beyond."""

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from essa_dist.bench.machine import machine
from essa_dist.bench.synthetic import synthetic_set
from essa_dist.disk import write_whole
from essa_dist.engine.config import RunConfig
from essa_dist.errors import EssaError, Preempted, UsageError
from essa_dist.planning.plan import facts_of, read_words
from essa_dist.scaling import pictures
from essa_dist.scaling.config import ScaleConfig
from essa_dist.scaling.jobs import Job, command, jobs, read, run
from essa_dist.scaling.prediction import Planner, check, predictions
from essa_dist.scaling.summary import judged, predicted, rows
from essa_dist.settings import to_yaml

log = logging.getLogger(__name__)

RESULT, RUN, STUDY, JOBS = "scaling.json", "run.yaml", "study.json", "jobs"
FREE = ("resume", "overwrite", "dry_run", "predict", "devices", "table", "interconnect", "per_machine", "price", "timeout_s", "launcher", "rounds", "sizes", "strategy", "mode")  # fmt: skip
"""Settings that may change when a study goes on: none of them changes a job."""


class NothingMeasuredError(EssaError):
    """No job of a study gave a result."""


def scale(config: ScaleConfig) -> dict[str, Any]:
    """Run the jobs in turns and write ``scaling.json`` and pictures; see :mod:`.summary` for what is computed.

    Raises UsageError before anything starts, NothingMeasuredError when every job failed, Preempted when it was stopped.
    """
    planned = read_words(config.run)
    check(config)
    planner = Planner(config, planned)
    out = Path(config.out).resolve()
    _hold(config, planned, out)
    run_config = _with_images(config, planned, out)
    (out / RUN).write_text(to_yaml(run_config))
    todo = {job: out / JOBS / job.name for job in jobs(config, planned.batch_size)}
    commands = {job: command(config, job, folder, [str(out / RUN)]) for job, folder in todo.items()}
    if config.dry_run:
        return {"dry_run": True, "commands": [" ".join(words) for words in commands.values()]}
    with _stoppable(out):
        results = {job: _one(config, job, folder, commands[job]) for job, folder in todo.items()}
    return _finish(config, run_config, planner, results, out)


def _one(config: ScaleConfig, job: Job, folder: Path, words: list[str]) -> dict[str, Any]:
    """What one job gives, now or, resumed, before."""
    if config.resume and (found := read(folder)):
        return found
    found = run(words, folder, timeout_s=config.timeout_s)
    if "error" in found:
        log.warning("%s failed: %s", job.name, found["error"])
    else:
        log.info("%s: %.2f img/s, %.3f s a step", job.name, job.batch_size / found["step_s"], found["step_s"])
    return found


def _finish(
    config: ScaleConfig,
    run_config: RunConfig,
    planner: Planner,
    results: dict[Job, dict[str, Any]],
    out: Path,
) -> dict[str, Any]:
    table = rows(config, run_config.batch_size, results)
    done = [row for row in table if "step_s" in row]
    if not done:
        raise NothingMeasuredError(f"no job gave a result: {table[0]['errors'][0]} (see {out / JOBS})")
    device = planner.measured_device(done[0]["device"])
    points = predictions(planner, table)
    judged(table, points, None if device is None else planner.price(device))
    beyond = predicted(points, config)
    import torch

    result: dict[str, Any] = {
        "benchmark": "scale",
        **facts_of(run_config),
        "settings": config.model_dump(mode="json", exclude={"out", "resume", "overwrite", "dry_run"}),
        "threads": done[0]["threads"],
        "machine": machine(torch.device("cpu" if done[0]["device"] == "cpu" else "cuda")),
        "efficiency": "weak: t_n / t_N at the same batch a process; strong: n t_n / (N t_N) at the same batch of all; n: the smallest size",
        "price": None if device is None else planner.price(device),
        "rows": table,
        "predicted": beyond,
    }
    write_whole(out / RESULT, json.dumps(result, indent=1) + "\n")
    drawn = [pictures.throughput, pictures.efficiency, pictures.split]
    files = [out / f"{draw.__name__}.png" for draw in drawn]
    for draw, file in zip(drawn, files, strict=True):
        draw(file, table, beyond)
    return result | {"files": [str(out / RESULT), *map(str, files)]}


def _hold(config: ScaleConfig, run: RunConfig, out: Path) -> None:
    """Make the study's folder, empty it, or see that it holds the same study. Raises UsageError."""
    fixed = config.model_dump(mode="json", exclude={*FREE, "out", "run"}) | {
        "run": run.model_dump(mode="json")
    }
    file = out / STUDY
    if out.exists() and not out.is_dir():
        raise UsageError(f"out={config.out} is a file: name a folder")
    if out.is_dir() and any(out.iterdir()):
        if not file.is_file():
            raise UsageError(f"out={config.out} is not empty, and no study: choose another out")
        if config.overwrite:
            shutil.rmtree(out)
        elif not config.resume:
            raise UsageError(
                f"out={config.out} holds a study: go on with it by resume=true, or choose another out"
            )
        elif (before := json.loads(file.read_text())) != fixed:
            changed = ", ".join(key for key in fixed if before.get(key) != fixed[key])
            raise UsageError(f"out={config.out} holds another study ({changed} differ): choose another out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(fixed))


def _with_images(config: ScaleConfig, run: RunConfig, out: Path) -> RunConfig:
    """The run on images that are there wherever a job is started; with a thread team that all sizes can have."""
    if not run.data.train:
        largest = run.batch_size * max(config.sizes)
        packed = out / "images" / "jpeg8"
        if not packed.is_dir():
            synthetic_set("jpeg8", out / "images", images=max(64, largest), size=512)
        train = str(packed)
    else:
        folder, colon, rest = run.data.train.partition(":")
        train = f"{Path(folder).resolve()}{colon}{rest}" if Path(folder).exists() else run.data.train
    changed: dict[str, Any] = {"data": run.data.model_copy(update={"train": train})}
    if run.threads is None and not config.launcher and machine_is_cpu(run):
        changed["threads"] = max(1, len(os.sched_getaffinity(0)) // max(config.sizes))
    return run.model_copy(update=changed)


def machine_is_cpu(run: RunConfig) -> bool:
    import torch

    return run.device == "cpu" or not torch.cuda.is_available()


@contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT end the job that runs, and the study: Preempted."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted(f"stopped by {signal.Signals(number).name}; go on with resume=true (so far: {out})")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
