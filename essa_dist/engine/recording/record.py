"""The run folder: who may use it, what a resumed run may change, and what computed the run."""

import fcntl
import importlib.metadata
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from essa_dist import runfolder
from essa_dist.engine.config import JobConfig
from essa_dist.errors import UsageError
from essa_dist.settings import load, to_yaml

log = logging.getLogger(__name__)

FREE_TO_CHANGE = {
    "out",
    "resume",
    "overwrite",
    "device",
    "shard_frozen",
    "shared_trunk",
    "threads",
    "log_every",
    "communication_every",
    "track",
    "canary",
    "model",
    "validation",
    "test",
    "profile",
    "checkpoint",
    "guard",
    "ledger",
    "data.train",
    "data.val",
    "data.test",
    "data.decoder",
    "data.decoded",
    "data.decoded_gb",
    "data.workers",
    "data.prefetch",
    "data.read_ahead",
    "data.cache",
    "data.bad_sample_quota",
}
"""Keys, or trees of them, that a resumed run may give another value: they do not touch what is computed. `data.train` and
`model` may be where the same set and the same weights lie now, as may the file or folder of `backbone.weights`; they are
compared with the checkpoint's."""

RESTART_S, RESUME_S = 30.0, 5.0
"""How long a job that was restarted, or resumes, waits for the process before it, which may be writing its checkpoint."""
_RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
_NEW_CONFIG = f".{runfolder.CONFIG}.writing"


def check_out(config: JobConfig) -> None:
    """Whether the run may use ``config.out``; changes nothing.

    Raises UsageError when it exists and neither resume nor overwrite was asked for, when resume would continue
    another run, or when overwrite would delete something that is not a run.
    """
    run = Path(config.out)
    if run.exists() and not run.is_dir():
        raise UsageError(f"out={run} is a file: name a folder")
    if config.overwrite and _is_restart():
        raise UsageError(
            "overwrite=true in a job that was restarted would delete what it has trained so far: say resume=true, which "
            "starts anew where there is nothing to go on with"
        )
    if _is_unused(run):
        return
    if config.overwrite and not (run / runfolder.CONFIG).is_file():
        raise UsageError(
            f"overwrite=true would delete out={run}, which is not a run folder: choose another out"
        )
    if config.resume:
        _check_same_run(config, run)
    elif not config.overwrite:
        raise UsageError(f"out={run} exists: choose another, or say resume=true or overwrite=true")


@contextmanager
def run_folder(config: JobConfig) -> Iterator[Path]:
    """Hold the run's folder, made ready: new, emptied (overwrite) or as it was (resume).

    Raises what ``check_out`` does, and UsageError where another process trains in it.
    """
    check_out(config)
    run = Path(config.out)
    run.mkdir(parents=True, exist_ok=True)
    with (run / runfolder.LOCK).open("a") as lock:
        _hold(lock, run, patience_s=RESTART_S if _is_restart() else RESUME_S * config.resume)
        if config.overwrite:
            _empty(run)
        if not config.resume and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            log.warning("torchrun can't restart this run: with --max-restarts say resume=true from the start")
        (run / runfolder.CHECKPOINTS).mkdir(exist_ok=True)
        (run / _NEW_CONFIG).write_text(to_yaml(config))
        (run / _NEW_CONFIG).replace(run / runfolder.CONFIG)  # at no moment half a one
        yield run


def _is_unused(run: Path) -> bool:
    """Whether there is nothing in it but what a start leaves that was killed at once."""
    checkpoints = run / runfolder.CHECKPOINTS
    debris = {run / runfolder.LOCK, run / _NEW_CONFIG}
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        debris.add(checkpoints)
    return not run.exists() or not set(run.iterdir()) - debris


def _is_restart() -> bool:
    """Whether torchrun's ``--max-restarts`` or Slurm's requeue has started this job once more."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in _RESTART_COUNTS)


def _hold(lock: IO[str], run: Path, *, patience_s: float) -> None:
    """A POSIX lock, which ends with this process: one of flock's kind would live on in data workers after ``kill -9``."""
    end, told = time.monotonic() + patience_s, False
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() > end:
                raise UsageError(
                    f"another process trains in out={run}: wait for it or end it, or choose another out"
                ) from None
        except OSError:
            log.warning("%s: this file system has no locks: start one run at a time in it", run)
            return
        if not told:
            log.info("another process is still in out=%s: waiting %.0f s for its end", run, patience_s)
            told = True
        time.sleep(0.1)


def _empty(run: Path) -> None:
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != runfolder.LOCK:
            path.unlink()


def _check_same_run(config: JobConfig, run: Path) -> None:
    if not (run / runfolder.CONFIG).is_file():
        raise UsageError(f"resume=true, but out={run} is not a run folder: it has no {runfolder.CONFIG}")
    before, now = flat(load(type(config), run / runfolder.CONFIG).model_dump()), flat(config.model_dump())
    other = {
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not _free(key, before, now)
    }
    kinds = tuple(f"{key.removesuffix('.kind')}." for key in other if key.endswith(".kind"))
    other = {
        key for key in other if key.endswith(".kind") or not key.startswith(kinds)
    }  # of which the rest follows
    changed = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in sorted(other)]
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UsageError(
            f"resume=true would continue another run in out={run}: {'; '.join(changed[:3])}{more}"
        )


def _free(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if (
        key == "backbone.weights"
    ):  # a file or folder may lie elsewhere: the checkpoint knows the trunk by its hash
        return {"auto", "random"}.isdisjoint((before.get(key), now.get(key)))
    if key == "data.train" and now.get("data.order") == "stream":
        return False  # tars without a manifest: who knows what they are
    return any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested settings by dotted key: ``optim.lr``."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def versions() -> dict[str, str]:
    """What computed this run."""
    names = ("essa-dist", "torch", "torchvision", "timm", "accelerate", "peft", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
