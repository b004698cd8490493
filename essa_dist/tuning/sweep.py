"""``essa tune``: a sweep from its plan to its report."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from essa_dist.disk import write_whole
from essa_dist.errors import EssaError, Preempted, UsageError
from essa_dist.packing.lock import lock
from essa_dist.settings import to_yaml
from essa_dist.tuning import estimate as cost
from essa_dist.tuning.cluster import cluster, concurrent, machines
from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.live import Live
from essa_dist.tuning.reaper import Reaper, write_freed
from essa_dist.tuning.record import ENDED, TRIALS, Sweep, Trial, read_trials
from essa_dist.tuning.report import summary, summary_text, write_report
from essa_dist.tuning.runs import check_runs, preview, run_config, trials_of
from essa_dist.tuning.space import setting_of

log = logging.getLogger(__name__)

SETTINGS, BEST, LOCK = "sweep.json", "best.yaml", ".lock"
FREE = {"address", "concurrent", "cpus", "resume", "overwrite", "dry_run", "price", "tflops", "shared", "out"}
"""Settings that a sweep may go on with others of."""
SHOWN = 12
"""Draws that a dry run prints."""


class TrialsFailedError(EssaError):
    """No trial of a sweep gave a result."""


def tune(config: TuneConfig) -> dict[str, Any]:
    """Search the space and return the best trial, all trials, and the files of the report.

    Raises UsageError before anything starts; Preempted when it was stopped and can go on with resume=true.
    """
    check_runs(config)
    if config.dry_run:
        return {
            "dry_run": True,
            "estimate": cost.estimate(config),
            "draws": list(preview(config, min(SHOWN, trials_of(config)))),
            "learns": config.search.kind == "optuna",
        }
    out = Path(config.out)
    with _held(config, out), cluster(config):
        nodes = machines()
        at_a_time = concurrent(config, nodes)
        _check_shared(out, nodes)
        found = cost.estimate(config, at_a_time)
        log.info(
            "%d trials, %d at a time; estimate: %.2f h, %.2f worker hours%s (at %.3g TFLOP/s a worker, which is assumed)",
            *(found["trials"], at_a_time, found["hours"], found["worker_hours"]),
            f", costing {found['price']:.2f}" if config.price else "",
            config.tflops,
        )
        begin = time.monotonic()
        try:
            with _shared_folder(config) as shared:
                _search(config, out, at_a_time, shared)
        except KeyboardInterrupt:  # before or behind the time in which Ray Tune heeds it
            raise Preempted(f"stopped by a signal; go on with resume=true (so far: {out})") from None
        return _finish(config, out, found, time.monotonic() - begin)


@contextmanager
def _held(config: TuneConfig, out: Path) -> Iterator[None]:
    """Hold the sweep's folder: new, emptied, or that of the same sweep. Raises UsageError."""
    file = out / SETTINGS
    if out.exists() and not out.is_dir():
        raise UsageError(f"out={out} is a file: name a folder")
    held_before = out.is_dir() and any(path.name != LOCK for path in out.iterdir())
    if config.overwrite and not file.is_file() and held_before:
        raise UsageError(f"overwrite=true would delete out={out}, which is no sweep: choose another out")
    if file.is_file() and not (config.resume or config.overwrite):
        raise UsageError(f"out={out} holds a sweep: go on with it by resume=true, or choose another out")
    if not file.is_file() and held_before:
        raise UsageError(f"out={out} is not empty, and no sweep: choose another out")
    held = lock(out / LOCK, f"another sweep runs in out={out}: wait for it, or choose another out")
    try:
        now = settings_of(config)
        if config.resume and file.is_file():
            _check_same(json.loads(file.read_text()), now, out)
        elif config.overwrite:
            for path in out.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_whole(file, json.dumps(now, indent=1) + "\n")
        yield
    except UsageError:
        if not (out / TRIALS).exists():  # refused before it began: it can be begun with other settings
            file.unlink(missing_ok=True)
        raise
    finally:
        held.close()


def varied(config: TuneConfig) -> tuple[str, ...]:
    """The settings that the space gives, each once."""
    return tuple(dict.fromkeys(setting_of(name) for name in config.space))


def settings_of(config: TuneConfig) -> dict[str, Any]:
    """What a sweep must keep to go on: its own settings, and those of the run it varies."""
    own = {name: value for name, value in config.model_dump(mode="json").items() if name not in FREE}
    return own | {"run": run_config(config, {}).model_dump(mode="json")}


def _check_same(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        what = "the base" if changed == ["run"] else ", ".join(name for name in changed if name != "run")
        raise UsageError(
            f"out={out} holds a sweep with another setting of {what}: go on with the same ones, or choose another out"
        )


def _check_shared(out: Path, nodes: list[Any]) -> None:
    """UsageError where a machine of the cluster doesn't see the sweep's folder."""
    if len(nodes) < 2:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = out / f".seen{uuid.uuid4().hex}"
    mark.touch()
    try:
        look = ray.remote(num_cpus=0)(os.path.exists)
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                if not ray.get(look.options(scheduling_strategy=there).remote(str(mark.resolve()))):
                    raise UsageError(
                        f"out={out} is not seen from {node['NodeManagerHostname']}: name a folder that all machines share"
                    )
    finally:
        mark.unlink()


@contextmanager
def _shared_folder(config: TuneConfig) -> Iterator[str]:
    if config.shared != "auto":
        yield config.shared
        return
    with tempfile.TemporaryDirectory(prefix="essa_tune_", ignore_cleanup_errors=True) as folder:
        yield folder


def launcher_env(file: str) -> dict[str, str]:
    """What ``accelerate launch --config_file FILE`` tells every process. Raises UsageError."""
    if not file:
        return {}
    if not Path(file).is_file():
        raise UsageError(f"no file job.launch={file}: name a config of accelerate, as launch/zero2.yaml")
    words = ["--config_file", file, "--num_processes", "1", "--main_process_port", "0", "--no_python", "env"]
    told = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        last = (told.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"accelerate refuses job.launch={file}: {last}")
    lines = (line.partition("=") for line in told.stdout.splitlines())
    env = {name: value for name, _, value in lines if name.startswith(("ACCELERATE_", "FSDP_"))}
    path = env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    return env | ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(Path(path).resolve())} if path else {})


def _search(config: TuneConfig, out: Path, at_a_time: int, shared: str) -> None:
    """Run Ray Tune to its end, or to a signal; what came of it lies in the trials' folders."""
    from essa_dist.tuning.ray_tune import make_tuner

    token = uuid.uuid4().hex
    tuner = make_tuner(config, out, at_a_time, launcher_env(config.job.launch), token, shared)
    goals, parameters = config.goals(), varied(config)
    with (
        Reaper(token) as reaper,
        Live(goals, parameters, trials_of(config)) as live,
        _watching(out, live, reaper),
    ):
        tuner.fit()
    write_freed(out, reaper.freed)


@contextmanager
def _watching(out: Path, live: Live, reaper: Reaper) -> Iterator[None]:
    """Show the trials and tell the reaper of them, from what lies in their folders."""
    over = threading.Event()

    def watch() -> None:
        last = False
        while not last:
            last = over.wait(1.0)
            trials = read_trials(out)
            for trial in trials:
                (reaper.end if trial.status in ENDED else reaper.start)(trial.name)
            live.update(trials)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)


def _finish(config: TuneConfig, out: Path, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    trials = read_trials(out)
    facts = {
        "trials": len(trials),
        "workers": config.job.workers,
        "search": config.search.kind,
        "scheduler": config.scheduler.kind,
        "hours": round(seconds / 3600, 2),
        "estimated hours": found["hours"],
    }
    logged = tuple(setting_of(name) for name, one in config.space.items() if one.log)
    sweep = Sweep(out.name, config.goals(), varied(config), logged, trials, config.base, facts)
    files = write_report(sweep, out)
    best = sweep.best()
    if best is not None:
        files.insert(0, _write_best(config, best, out))
    left = [trial.name for trial in trials if trial.status not in ENDED]
    missing = max(0, trials_of(config) - len(trials))
    failed = [trial for trial in trials if trial.status == "failed"]
    if missing and len(failed) == len(trials) > 0:
        raise TrialsFailedError(
            f"all of the first {len(failed)} trials failed, the last with: {failed[-1].reason}; mend it, then resume=true"
        )
    if left or missing:
        log.info("%s", summary_text(sweep, files).rstrip())
        raise Preempted(
            f"stopped with {len(trials) - len(left)} of {trials_of(config)} trials ended; go on with resume=true (so far: {out})"
        )
    more = {"out": str(out), "hours": facts["hours"], "estimate": found, "exit_code": int(best is None)}
    return summary(sweep, files) | more


def _write_best(config: TuneConfig, best: Trial, out: Path) -> Path:
    """The settings of the best trial, for a run of its own."""
    file = out / BEST
    settings = run_config(config, best.params, str(out / "best"))
    goal = config.goals()[0].name
    head = f"# The best of {trials_of(config)} trials, {best.name}: {goal} {best.best[goal]:.4g}.\n"
    write_whole(file, f"{head}#   essa {config.verb} {file}\n{to_yaml(settings)}")
    return file
