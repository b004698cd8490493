"""Sweeps of stand-ins for runs: their settings, here or in a process of their own.

``python -m tests.tuning.driving SWEEP.yaml`` is ``essa tune SWEEP.yaml`` with the stand-in as a rank.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from essa_dist.settings import load
from essa_dist.tuning import ray_tune
from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.sweep import tune
from essa_dist.tuning.trial import Shared

STAND_IN = Path(__file__).with_name("stand_in.py")
REPOSITORY = Path(__file__).parents[2]
WAIT_S = 240
"""For what takes seconds on a quiet machine."""


def settings(folder: Path, space: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Of a sweep over runs of 8 steps, with a look at every second and a checkpoint with it."""
    base = folder / "base.yaml"
    base.write_text(
        yaml.safe_dump(
            {
                "out": "unused",
                "duration": 8,
                "batch_size": 4,
                "data": {"train": "pace@0.02"},
                "canary": {"data": "none:val", "every": 2},
                "checkpoint": {"every": 2},
            }
        )
    )
    return {"base": str(base), "out": str(folder / "sweep"), "space": space, "shared": "", **more}


def sweep(told: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """Run it here; ranks are stand-ins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_tune, "Shared", partial(Shared, command=(str(STAND_IN),)))
        return tune(load(TuneConfig, told, overrides))


def apart(
    told: dict[str, Any], *overrides: str, module: str = "tests.tuning.driving"
) -> "subprocess.Popen[str]":
    """Run it in a process of its own, with a cluster of its own."""
    file = Path(told["base"]).with_name("told.yaml")
    file.write_text(yaml.safe_dump(told))
    return subprocess.Popen(
        [sys.executable, "-m", module, str(file), *overrides],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_group(process: "subprocess.Popen[str]") -> None:
    """Kill what ``apart`` has started, with what belongs to its cluster."""
    mine = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in mine:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(mine, timeout=WAIT_S)


def until(what: Callable[[], Any], seconds: float = WAIT_S) -> Any:
    """Wait until ``what`` gives something, and give that."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    told = yaml.safe_load(Path(sys.argv[1]).read_text())
    try:
        result = sweep(told, *sys.argv[2:])
    except Exception as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.exit(getattr(error, "exit_code", 1))
    sys.stdout.write(json.dumps({"best": result["best"]}) + "\n")
