"""``essa`` with a fault in it. Started by tests, one process a rank.

usage: python tests/faults/faulty.py FAULT RANK STEP WORD...

From STEP (counted from 1) on, rank RANK suffers what FAULT says; the words are those of the ``essa`` command.
"""

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from essa_dist.cli import main
from essa_dist.data.batch import Batch
from essa_dist.data.loader import CropLoader
from essa_dist.engine.recording.metrics import Rows
from essa_dist.engine.saving import checkpoint
from essa_dist.objectives import DINOv2Objective

FOREVER_S = 3600.0
SLOW_S = 0.6
BAD_SAMPLE = 1
"""Place in the rank's batch of the sample that is made NaN."""


def on_batches(change: Callable[[Batch], Batch]) -> None:
    """Every batch that the loop gets goes through ``change``."""
    before = CropLoader.batches

    def batches(self: CropLoader, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        for batch in before(self, *args, **kwargs):
            yield change(batch)

    CropLoader.batches = batches  # type: ignore[method-assign, assignment]


def on_forward(act: Callable[[Batch], Batch]) -> None:
    """``act`` before each forward pass."""
    before = DINOv2Objective.losses

    def losses(self: DINOv2Objective, batch: Batch, **kwargs: Any) -> Any:
        return before(self, act(batch), **kwargs)

    DINOv2Objective.losses = losses  # type: ignore[method-assign]


def on_save(step: int, act: Callable[[], None]) -> None:
    """``act`` before the checkpoint of ``step``, or a later one, is written."""
    before = checkpoint.write

    def write(folder: Path, *args: Any, **kwargs: Any) -> int:
        if int(folder.name.rpartition("_")[2]) >= step:
            act()
        return before(folder, *args, **kwargs)

    checkpoint.write = write


def poisoned(batch: Batch) -> Batch:
    """One sample's first global crop is NaN; float crops are taken for normalised ones."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    crops = batch.to("cpu", mean=mean, std=std)
    crops.global_crops[0, BAD_SAMPLE] = torch.nan
    return crops


def hang() -> None:
    time.sleep(FOREVER_S)


def slow() -> None:
    time.sleep(SLOW_S)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")


def then(act: Callable[[], None], batch: Batch) -> Batch:
    act()
    return batch


def on_metrics(step: int, act: Callable[[], None]) -> None:
    before = Rows.add

    def add(self: Rows, row: Mapping[str, Any]) -> None:
        if row["step"] >= step:
            act()
        before(self, row)

    Rows.add = add  # type: ignore[method-assign]


def read_only(out: Path) -> None:
    """No folder can be made in the place of ``out``; permissions would not keep a superuser from it."""
    before = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        if self == out:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(out))
        before(self, *args, **kwargs)

    Path.mkdir = mkdir  # type: ignore[method-assign]


def faults(step: int, out: Path) -> dict[str, Callable[[], None]]:
    """How to put each fault in."""

    def once(change: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
        return lambda batch: change(batch) if batch.step + 1 == step else batch

    def ever(change: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
        return lambda batch: change(batch) if batch.step + 1 >= step else batch

    def vanish() -> None:
        shutil.rmtree(out, ignore_errors=True)

    return {
        "none": lambda: None,
        "data-hangs": lambda: on_batches(once(lambda batch: then(hang, batch))),
        "data-slow": lambda: on_batches(ever(lambda batch: then(slow, batch))),
        "step-hangs": lambda: on_forward(once(lambda batch: then(hang, batch))),
        "step-slow": lambda: on_forward(ever(lambda batch: then(slow, batch))),
        "save-hangs": lambda: on_save(step, hang),
        "nan-once": lambda: on_batches(once(poisoned)),
        "nan-from": lambda: on_batches(ever(poisoned)),
        "out-vanishes": lambda: on_forward(once(lambda batch: then(vanish, batch))),
        "disk-full-at-save": lambda: on_save(step, full_disk),
        "disk-full-at-metrics": lambda: on_metrics(step, full_disk),
        "read-only": lambda: read_only(out),
    }


def run(args: list[str]) -> int:
    """The exit code of the command."""
    fault, rank, step, *words = args
    (out,) = [Path(word.removeprefix("out=")) for word in words if word.startswith("out=")]
    put_in = faults(int(step), out)[fault]
    if os.environ.get("RANK", "0") == rank:
        put_in()
    return main(words)


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
