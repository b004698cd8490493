"""The folder of a sweep: whose it is, and whether every machine sees it."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from essa_dist.disk import write_whole
from essa_dist.errors import UsageError
from essa_dist.packing.lock import lock
from essa_dist.tuning.cluster import on_machines
from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.record import TRIALS
from essa_dist.tuning.runs import run_config

SETTINGS, LOCK = "sweep.json", ".lock"
FREE = {"address", "concurrent", "cpus", "resume", "overwrite", "dry_run", "price", "tflops", "shared", "out"}
"""Settings that a sweep may go on with others of."""


@contextmanager
def held(config: TuneConfig, out: Path) -> Iterator[None]:
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
    taken = lock(out / LOCK, f"another sweep runs in out={out}: wait for it, or choose another out")
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
        taken.close()


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


def check_shared(out: Path) -> None:
    """Raises UsageError where a machine of the cluster doesn't see the sweep's folder."""
    mark = out / f".seen{uuid.uuid4().hex}"
    mark.touch()
    try:
        for host, seen in on_machines(os.path.exists, str(mark.resolve())):
            if not seen:
                raise UsageError(f"out={out} is not seen from {host}: name a folder that all machines share")
    finally:
        mark.unlink()
