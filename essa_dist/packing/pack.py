"""``essa pack``: write images as WebDataset tars with a manifest and an index."""

import errno
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from essa_dist.data.manifest import INDEX_FILE, MANIFEST_FILE, QUARANTINE_FILE, REPORT_FILE
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.config import PackConfig
from essa_dist.packing.describe import describe, write_and_examine
from essa_dist.packing.encode import Encoding
from essa_dist.packing.guards import FINDINGS_FILE
from essa_dist.packing.identity import identity, input_bytes
from essa_dist.packing.journal import Journal, LeftOut, digest
from essa_dist.packing.layouts import Found, find_sources
from essa_dist.packing.layouts.found import legible, some
from essa_dist.packing.lock import clean_up, locked
from essa_dist.packing.samples import Recipe
from essa_dist.packing.shards import Task
from essa_dist.packing.source import Source
from essa_dist.packing.splits import assign_splits, check_patients, patient_numbers

logger = logging.getLogger(__name__)

__all__ = ["PackConfig", "pack"]

SMALL = 32_000_000
"""Bytes of files up to which starting processes takes longer than it saves."""


def pack(config: PackConfig) -> dict[str, Any]:
    """Pack ``config.src`` into ``config.out``, which is complete or absent, and say what was written.

    What is finished survives a kill, Ctrl-C or a full disk: the same call goes on, with the same bytes in the end.
    Raises UsageError for wrong paths, lists or settings, DataError for no images, duplicate keys, too many bad files
    or a full disk.
    """
    began = time.monotonic()
    out = Path(config.out)
    clean_up(out)
    _check_out(out, config.overwrite)
    found = find_sources(Path(config.src), config)
    for note in found.notes:
        logger.info("%s", note)
    task = _plan(found, config)
    logger.info(
        "%s: %d files, splits %s",
        config.src,
        len(task.sources),
        dict(Counter(one.split for one in task.sources)),
    )
    with locked(out):
        _check_out(out, config.overwrite)  # again: another pack may have ended since
        journal = Journal(out)
        journal.open(identity(config, found, task.sources), digest([config.guards]))
        already = _say_resumed(journal)
        with _broken_off(journal):
            left_out, findings = write_and_examine(task, journal)
            packed = time.monotonic()
            manifest = describe(journal, task, found, left_out, findings)
            journal.move_into_place(out)
    samples = sum(manifest.samples.values())
    seconds = time.monotonic() - began
    return {
        "out": str(out),
        "name": manifest.name,
        "samples": samples,
        "counts": manifest.counts,
        "label_kind": manifest.label_kind,
        "patients": manifest.patients,
        "bits": manifest.bits,
        "shards": len(manifest.shards),
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "skipped": manifest.skipped,
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        **findings.summary(),
        "report": str(out / REPORT_FILE) if config.report else None,
        "seconds": round(seconds, 2),
        "img_per_s": round((samples - already) / max(packed - began, 1e-9), 1),
    }


def _plan(found: Found, config: PackConfig) -> Task:
    """Divide the files, number their patients and choose the workers."""
    src = Path(config.src)
    sources = assign_splits(found.sources, config.splits, config.seed)
    if config.guards.patients == "refuse":
        _refuse_shared(sources)
    base = src if src.is_dir() else src.parent
    return Task(
        config=config,
        base=base,
        sources=sources,
        missing=[
            LeftOut(path=legible(os.path.relpath(path, base)), reason=reason, harmless=False)
            for path, reason in found.missing
        ],
        classes={name: number for number, name in enumerate(found.classes)},
        several=found.label_kind == "multi",
        patients=patient_numbers(sources, config.seed),
        recipe=Recipe(
            read=config.read,
            encoding=Encoding(config.image_size, config.quality, config.depth),
            blank=config.blank,
            mask_classes=len(found.mask_classes) or 2,
        ),
        workers=_workers(sources) if config.workers == "auto" else config.workers,
    )


def _workers(sources: Sequence[Source]) -> int:
    small = input_bytes(sources, SMALL) < SMALL
    return 0 if small else min(len(os.sched_getaffinity(0)), len(sources))


def _refuse_shared(sources: Sequence[Source]) -> None:
    shared = check_patients(sources)
    if shared:
        splits, keys = shared[0].splits, shared[0].keys
        example = " and ".join(f"{key} ({split})" for key, split in zip(keys, splits, strict=True))
        raise DataError(
            f"{len(shared)} patients are in more than one split, e.g. that of {example}: mend the list, leave the "
            "splits to `splits`, or accept it with guards.patients=report"
        )


def _say_resumed(journal: Journal) -> int:
    """Samples that an earlier pack finished."""
    already = sum(record.shard.count for record in journal.records)
    if already:
        logger.info(
            "going on after the %d images in %d tars that an earlier pack finished",
            already,
            len(journal.records),
        )
    return already


@contextmanager
def _broken_off(journal: Journal) -> Iterator[None]:
    """Tell what was finished when the pack is broken off; a full disk is one line."""
    try:
        yield
    except KeyboardInterrupt:
        if journal.records:
            logger.warning("stopped; %s: the same command goes on", _kept(journal))
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"no room for the packed set in {journal.folder.parent} ({os.strerror(error.errno)}); {_kept(journal)}: "
            "make room, and the same command goes on"
        ) from error


def _kept(journal: Journal) -> str:
    images = sum(record.shard.count for record in journal.records)
    return f"{images} images are finished" + (f" and kept in {journal.folder}" if images else "")


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise UsageError(f"{out} exists already: choose another `out` or set overwrite=true")
    if not (out / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{out} is not a packed data set, so overwrite=true won't replace it: choose another `out`"
        )
    if strange := _strange(out):
        raise UsageError(
            f"{out} holds {some(strange, 3)} beside a packed set, which overwrite=true would delete: move it away, or "
            "choose another `out`"
        )


def _strange(out: Path) -> list[str]:
    """What a pack didn't write, tars that were indexed in their place among it."""
    own = {MANIFEST_FILE, INDEX_FILE, QUARANTINE_FILE, FINDINGS_FILE, REPORT_FILE}
    names = sorted(path.name for path in out.iterdir())
    return [name for name in names if name not in own and not re.fullmatch(r"[\w-]+-\d{6}\.tar", name)]
