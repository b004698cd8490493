"""Whether the run's folder takes what the run is going to save: asked before the first step, not after the first hours."""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from essa_dist.disk import write_speed
from essa_dist.errors import UsageError
from essa_dist.runfolder import CHECKPOINTS, best_checkpoint, committed_checkpoints, take_back_start

log = logging.getLogger(__name__)

_BYTES = 4
"""Of a number: trained tensors, moments and buffers are kept in fp32."""


def checkpoint_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Size of a checkpoint of these tensors (``Strategy.shapes``) once all were stepped: AdamW keeps two more of each student."""
    numbers = {name: math.prod(shape) for name, shape in shapes.items()}
    students = sum(n for name, n in numbers.items() if name.startswith("student/"))
    return _BYTES * (sum(numbers.values()) + 2 * students)


def preflight(run: Path, shapes: Mapping[str, Sequence[int]], *, keep: int, best: bool = False) -> float:
    """Try ``run``'s folder of checkpoints, on one rank; the seconds that one checkpoint will take to be written.

    A small file is written, flushed, renamed and deleted; there must be room for ``keep`` checkpoints, the canary's
    ``best`` where one is kept, and one that is being written, less those that are there already. Raises UsageError with
    the numbers, and the start of a new run is taken back. Takes about a second.
    """
    try:
        return _try(run, checkpoint_bytes(shapes), keep=keep, best=best)
    except UsageError:
        take_back_start(run)
        raise


def _try(run: Path, size: int, *, keep: int, best: bool) -> float:
    folder, kept = run / CHECKPOINTS, {*committed_checkpoints(run)[-keep:]}
    if best and (marked := best_checkpoint(run)):
        kept.add(marked)
    there = sum(file.stat().st_size for checkpoint in kept for file in checkpoint.iterdir())
    need = max(size, (keep + best + 1) * size - there)
    try:
        free = shutil.disk_usage(folder).free
        speed = write_speed(folder) if free >= need else 0.0
    except OSError as error:
        raise UsageError(
            f"out={run} takes no checkpoints ({error.filename}: {error.strerror}): mend that or write elsewhere with out=DIR"
        ) from error
    if free < need:
        others = "the canary's best and one" if best else "and one"
        raise UsageError(
            f"out={run}: checkpoints of {_mb(size)} need {_mb(need)} of free space (checkpoint.keep={keep}, {others} that "
            f"is being written), {_mb(free)} are free: free some space, lower checkpoint.keep or write elsewhere with out=DIR"
        )
    log.info("checkpoints of %s, written at %s/s", _mb(size), _mb(speed))
    return size / speed


def warn_if_slow(expected_s: float, interval_s: float) -> None:
    """Say so when a checkpoint takes longer to be written than it is until the next one, so that training would wait."""
    if expected_s > interval_s:
        log.warning(
            "a checkpoint takes about %.1f s to be written here, and the next one is due in about %.1f s: raise "
            "checkpoint.every, or write to a faster disk with out=DIR",
            expected_s,
            interval_s,
        )


def _mb(n: float) -> str:
    return f"{n / 1e6:,.1f} MB"
