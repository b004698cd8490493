"""What every call does: hold the folder, make the parts that are not finished, write down what there is."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from essa_dist.backbones.weights import file_sha256
from essa_dist.data.quota import BadQuota
from essa_dist.errors import DataError
from essa_dist.inference.folder import Left, OutFolder, Part, check_quota
from essa_dist.inference.ranks import Ranks
from essa_dist.inference.work import One, Work

Prepared = TypeVar("Prepared")


class Made(NamedTuple):
    """One part, whose files are on the disk."""

    rows: int
    """Pictures."""
    files: list[Path]
    about: list[dict[str, Any]]
    """What else is to be kept, of JSON's types."""


class How(NamedTuple):
    """What a user says of the folder and of what may be missing."""

    resume: bool
    overwrite: bool
    quota: BadQuota


def run(
    folder: OutFolder,
    ranks: Ranks,
    work: Work[Prepared],
    how: How,
    identity: Mapping[str, Any],
    *,
    make: Callable[[int, Iterator[list[One[Prepared]]]], Made],
    finish: Callable[[list[Part], dict[str, int]], dict[str, Any]],
) -> dict[str, Any]:
    """What ``finish`` gives, on every rank, and how fast it was.

    ``make`` makes a part of its batches; ``finish`` is called on rank 0 with all parts, and how many pictures were left
    out by reason. Raises what they do, and DataError where more is unreadable than the quota allows, or all.
    """
    begin = time.perf_counter()
    given = {"resume": how.resume, "overwrite": how.overwrite}
    with ExitStack() as held:
        ranks.first(lambda: str(held.enter_context(folder.hold(identity, **given))))
        todo = ranks.first(lambda: sorted(set(range(work.count)) - set(folder.finished())))
        for number, batches in work.parts(ranks.claim(todo), len(todo)):
            made = make(number, batches)
            files = {path.relative_to(folder.path).as_posix(): file_sha256(path) for path in made.files}
            left = tuple(
                Left(path=one.key, reason=one.reason, harmless=one.harmless) for one in work.left_out()
            )
            folder.add(
                Part(number=number, rows=made.rows, files=files, left_out=left, about=tuple(made.about))
            )
        summary: dict[str, Any] = ranks.after_all(lambda: _whole(folder, how.quota, work.items_total, finish))
    seconds = time.perf_counter() - begin
    rate = work.pictures * ranks.count / max(seconds, 1e-9)
    return summary | {"made_here": work.pictures, "seconds": round(seconds, 2), "img_per_s": round(rate, 1)}


def _whole(
    folder: OutFolder,
    quota: BadQuota,
    total: int,
    finish: Callable[[list[Part], dict[str, int]], dict[str, Any]],
) -> dict[str, Any]:
    parts = list(folder.finished().values())
    left = [one for part in parts for one in part.left_out]
    reasons = folder.quarantine(parts)  # before it may be too many: they are to be mended
    check_quota(left, quota, total)
    if not any(part.rows for part in parts):
        raise DataError(f"none of the {total} images can be read; {left[0].path}: {left[0].reason}")
    counts = {"out": str(folder.path), "images": sum(part.rows for part in parts), "left_out": len(left)}
    return counts | finish(parts, reasons)
