"""Population based training: the weights of one trial as the start of another.

A checkpoint holds both branches, heads, optimizer and the place in the sample plan, so a run that finds one in its folder
goes on from all of that. Files are linked, not copied: the same bytes under a second name.
"""

import os
import shutil
from pathlib import Path
from typing import TypedDict

from essa_dist import runfolder

PINNED = "pinned"
ATTEMPTS = 5
KEPT = 2
"""Checkpoints kept for exploits: the newest may be pinned while another trial still takes the one before."""


class Pointer(TypedDict):
    """Where the weights are that an exploit takes."""

    trial: str
    step: int
    checkpoint: str


def pin(trial: str, folder: Path, run: Path) -> Pointer | None:
    """Keep the newest checkpoint of ``run`` from being deleted; None: it has none yet."""
    newest = next(reversed(runfolder.committed_checkpoints(run)), None)
    if newest is None:
        return None
    step = int(newest.name.removeprefix("step_"))
    pinned = folder / PINNED / f"{run.name}_{newest.name}"
    if not pinned.exists():
        beside = pinned.with_name(f".{pinned.name}")
        shutil.rmtree(beside, ignore_errors=True)
        _link(newest, beside)
        beside.replace(pinned)
    for old in sorted((folder / PINNED).iterdir(), key=lambda one: one.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old)
    return {"trial": trial, "step": step, "checkpoint": str(pinned)}


def begin_from(pointer: Pointer, run: Path, config: str) -> int:
    """Make ``run`` one that goes on from another's checkpoint, with settings of its own: the YAML ``config``.

    Returns the checkpoint's step: where the other trial has got on so far meanwhile that the one of ``pointer`` is gone, it
    is a later one of the same trial. Raises FileNotFoundError where that has none.
    """
    checkpoint = Path(pointer["checkpoint"])
    for attempt in range(ATTEMPTS):
        shutil.rmtree(run, ignore_errors=True)
        (run / runfolder.CHECKPOINTS).mkdir(parents=True)
        step = int(checkpoint.name.rpartition("_")[2])
        try:
            _link(checkpoint, runfolder.checkpoint_folder(run, step))
            break
        except (OSError, shutil.Error):  # deleted before, or under the copy
            later = max(
                checkpoint.parent.glob("run*"), key=lambda one: one.name.rpartition("_")[2], default=None
            )
            if later is None or attempt + 1 == ATTEMPTS:
                raise
            checkpoint = later
    (run / runfolder.CONFIG).write_text(config)
    return step


def _link(source: Path, target: Path) -> None:
    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # a file system without links
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=link)
