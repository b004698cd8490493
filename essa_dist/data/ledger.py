"""The ledger: which samples every step really saw, written by each rank as it trains, and checked against the plan.

One file for each rank and each start of a run, ``ledger/from_00000120_rank_0001_of_0004.jsonl``: a line
``{"step": 121, "keys": [...]}`` after each update, counted from 1. A run that goes on after step s overrules what earlier
starts wrote about later steps: these updates were lost with the process that made them.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from essa_dist.data.plan import SamplePlan
from essa_dist.errors import DataError

FOLDER = "ledger"
_NAME = re.compile(r"from_(\d{8})_rank_(\d{4})_of_(\d{4})\.jsonl")


class Ledger:
    """Writes one rank's lines. A line is in the kernel's hands when :meth:`write` returns: it survives ``kill -9``."""

    def __init__(self, run: Path, *, start_step: int, rank: int, world_size: int, enabled: bool) -> None:
        self._file = None
        if enabled:
            folder = run / FOLDER
            folder.mkdir(exist_ok=True)
            if rank == 0:
                for old in _files(folder):  # nothing of them was kept, else the run would go on from later
                    if old.start >= start_step and (old.start, old.world_size) != (start_step, world_size):
                        old.path.unlink()
            name = f"from_{start_step:08d}_rank_{rank:04d}_of_{world_size:04d}.jsonl"
            self._file = (folder / name).open("w", encoding="utf-8")

    def write(self, step: int, keys: Sequence[str], bad: Sequence[str] = ()) -> None:
        """Record the samples of the update ``step`` (from 1) on this rank, in their order, and the broken ones replaced."""
        if self._file is not None:
            row = {"step": step, "keys": list(keys)} | ({"bad": list(bad)} if bad else {})
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()


class Start(NamedTuple):
    """One start of a run."""

    step: int
    """Updates made before it."""
    world_size: int


class Audit(NamedTuple):
    """What the ledger says of a run, up to the last step that all ranks recorded."""

    starts: tuple[Start, ...]
    steps: int
    samples: int
    missing_steps: int
    """Steps before the last one that some rank did not record."""
    replaced: int
    """Broken samples in whose place another was seen; not counted as repeated or skipped."""
    unplanned: int
    """Other samples that are not the plan's."""
    epochs: int
    """Complete epochs."""
    repeated: int
    """Times that a sample was seen again in a complete epoch."""
    skipped: int
    """Samples that a complete epoch did not see."""


def audit(run: Path, plan: SamplePlan, keys: Sequence[str], global_batch: int) -> Audit:
    """Compare the ledger of ``run`` with ``plan`` over a data set of ``keys``. Raises DataError where there is none."""
    files = _files(run / FOLDER)
    if not files:
        raise DataError(f"{run} has no ledger: record one with ledger=true when the run is started")
    seen = _seen(files)
    last = max(seen)
    stream: list[str | None] = []
    replaced = 0
    for step in range(1, last + 1):
        found = seen.get(step, _Line((None,) * global_batch, frozenset()))
        planned = [keys[index] for index in plan.indices(step - 1, global_batch)]
        broken = [
            key != other and any(where.endswith(f":{key}") for where in found.bad)
            for key, other in zip(planned, found.keys, strict=True)
        ]
        replaced += sum(broken)
        stream += [key if bad else other for key, other, bad in zip(planned, found.keys, broken, strict=True)]
    expected = [keys[index] for index in plan.at(range(len(stream)))]
    epochs = len(stream) // plan.n
    counts = [Counter(stream[i * plan.n : (i + 1) * plan.n]) for i in range(epochs)]
    return Audit(
        starts=tuple(sorted({Start(file.start, file.world_size) for file in files})),
        steps=last,
        samples=len(stream),
        missing_steps=last - len(seen),
        replaced=replaced,
        unplanned=sum(key != other for key, other in zip(stream, expected, strict=True)),
        epochs=epochs,
        repeated=sum(sum(n - 1 for n in of_epoch.values()) for of_epoch in counts),
        skipped=sum(plan.n - len(of_epoch.keys() - {None}) for of_epoch in counts),
    )


class _Line(NamedTuple):
    keys: tuple[str | None, ...]
    bad: frozenset[str]
    """``shard:key``; both may hold colons, as where the shard is an address."""


class _File(NamedTuple):
    start: int
    rank: int
    world_size: int
    path: Path


def _files(folder: Path) -> list[_File]:
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob("*.jsonl")]
    return sorted(_File(int(found[1]), int(found[2]), int(found[3]), path) for found, path in named if found)


def _seen(files: Sequence[_File]) -> dict[int, _Line]:
    """Each step that every rank of its start recorded, the samples in the order of the ranks."""
    starts = sorted({file.start for file in files})
    found: dict[int, _Line] = {}
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        ranks = [_lines(file.path) for file in files if file.start == start]  # sorted by rank
        world_size = next(file.world_size for file in files if file.start == start)
        for step in set.intersection(*(set(lines) for lines in ranks)):
            if len(ranks) == world_size and (following is None or step <= following):
                parts = [lines[step] for lines in ranks]
                keys = tuple(key for part in parts for key in part.keys)
                found[step] = _Line(keys, frozenset().union(*(part.bad for part in parts)))
    if not found:
        raise DataError(f"{files[0].path.parent} records no step that all ranks have finished")
    return found


def _lines(path: Path) -> dict[int, _Line]:
    """A kill may have cut the last line: it is left out."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            rows[int(row["step"])] = _Line(tuple(row["keys"]), frozenset(row.get("bad", ())))
    return rows
