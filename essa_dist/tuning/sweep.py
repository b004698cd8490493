"""``essa tune``: a sweep from its plan to its report."""

import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from essa_dist.disk import write_whole
from essa_dist.errors import EssaError, Preempted, UsageError
from essa_dist.settings import to_yaml
from essa_dist.tuning import estimate as cost
from essa_dist.tuning.cluster import cluster, concurrent, machines, on_machines
from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.folder import check_shared, held
from essa_dist.tuning.live import Live
from essa_dist.tuning.reaper import Reaper, write_freed
from essa_dist.tuning.record import ENDED, Sweep, Trial, read_trials
from essa_dist.tuning.report import summary, summary_text, write_report
from essa_dist.tuning.runs import check_runs, preview, run_config, trials_of
from essa_dist.tuning.space import setting_of

log = logging.getLogger(__name__)

BEST = "best.yaml"
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
    with held(config, out), cluster(config):
        at_a_time = concurrent(config, machines())
        check_shared(out)
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


def varied(config: TuneConfig) -> tuple[str, ...]:
    """The settings that the space gives, each once."""
    return tuple(dict.fromkeys(setting_of(name) for name in config.space))


@contextmanager
def _shared_folder(config: TuneConfig) -> Iterator[str]:
    if config.shared != "auto":
        yield config.shared
        return
    with tempfile.TemporaryDirectory(prefix="essa_tune_", ignore_cleanup_errors=True) as folder:
        try:
            yield folder
        finally:  # other machines have made it for themselves
            with suppress(Exception):  # of one that is gone by now
                on_machines(shutil.rmtree, folder, True)


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
