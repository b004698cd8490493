"""The run folder's records: config, metrics, TensorBoard events, and the post-mortem of a run that diverged."""

import fcntl
import importlib.metadata
import json
import logging
import math
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from torch.utils.tensorboard import SummaryWriter

from essa_dist import runfolder
from essa_dist.engine.config import RunConfig
from essa_dist.errors import UsageError
from essa_dist.settings import load, to_yaml

log = logging.getLogger(__name__)

FREE_TO_CHANGE = {
    "out",
    "resume",
    "overwrite",
    "device",
    "threads",
    "log_every",
    "checkpoint",
    "guard",
    "ledger",
    "data.train",
    "data.decoder",
    "data.workers",
    "data.prefetch",
    "data.read_ahead",
    "data.cache",
    "data.bad_sample_quota",
}
"""Keys, or trees of them, that a resumed run may give another value: they do not touch what is computed. `data.train` may
be where the same set lies now; its manifest is compared with the checkpoint's."""


def check_out(config: RunConfig) -> None:
    """Whether the run may use ``config.out``; changes nothing.

    Raises UsageError when it exists and neither resume nor overwrite was asked for, when resume would continue
    another run, or when overwrite would delete something that is not a run.
    """
    run = Path(config.out)
    if run.exists() and not run.is_dir():
        raise UsageError(f"out={run} is a file: name a folder")
    if not run.exists() or not any(path.name != runfolder.LOCK for path in run.iterdir()):
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
def run_folder(config: RunConfig) -> Iterator[Path]:
    """Hold the run's folder, made ready: new, emptied (overwrite) or as it was (resume).

    Raises what ``check_out`` does, and UsageError where another process trains in it.
    """
    check_out(config)
    run = Path(config.out)
    run.mkdir(parents=True, exist_ok=True)
    with (run / runfolder.LOCK).open("a") as lock:
        _hold(lock, run)
        if config.overwrite:
            _empty(run)
        (run / runfolder.CHECKPOINTS).mkdir(exist_ok=True)
        (run / runfolder.CONFIG).write_text(to_yaml(config))
        yield run


def _hold(lock: IO[str], run: Path) -> None:
    """A POSIX lock, which ends with this process: one of flock's kind would live on in data workers after ``kill -9``."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UsageError(
            f"another process trains in out={run}: wait for it or end it, or choose another out"
        ) from None
    except OSError:
        log.warning("%s: this file system has no locks: start one run at a time in it", run)


def _empty(run: Path) -> None:
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != runfolder.LOCK:
            path.unlink()


def _check_same_run(config: RunConfig, run: Path) -> None:
    if not (run / runfolder.CONFIG).is_file():
        raise UsageError(f"resume=true, but out={run} is not a run folder: it has no {runfolder.CONFIG}")
    before, now = _flat(load(RunConfig, run / runfolder.CONFIG).model_dump()), _flat(config.model_dump())
    changed = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _free(key, config)
    ]
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UsageError(
            f"resume=true would continue another run in out={run}: {'; '.join(changed[:3])}{more}"
        )


def _free(key: str, config: RunConfig) -> bool:
    if key == "data.train" and config.data.order == "stream":
        return False  # tars without a manifest: who knows what they are
    return any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Metrics:
    """``metrics.jsonl`` and TensorBoard events; on resume, rows after the restored step are dropped.

    Only one process may be ``enabled``; on the others nothing is written.
    """

    def __init__(self, run: Path, *, start_step: int, enabled: bool) -> None:
        self.enabled, self.path = enabled, run / runfolder.METRICS
        if not enabled:
            return
        kept = [line for line in _complete_lines(self.path) if json.loads(line)["step"] <= start_step]
        self.path.write_text("".join(kept))
        self.board = SummaryWriter(str(run), purge_step=start_step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """One row; a number that is not finite becomes null, as JSON knows no NaN."""
        if not self.enabled:
            return
        clean = {key: value if math.isfinite(value) else None for key, value in row.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(clean) + "\n")
        for key, value in row.items():
            if key != "step":
                self.board.add_scalar(key, value, int(row["step"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled:
            self.board.close()


def _complete_lines(path: Path) -> list[str]:
    """Lines that end; a kill may have cut the last one."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


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
