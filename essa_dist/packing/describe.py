"""Around the shards: examine all samples, drop duplicates where that is asked for, describe the set."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import read_index
from essa_dist.data.manifest import Manifest
from essa_dist.errors import DataError
from essa_dist.packing.guards import Findings, Table, examine
from essa_dist.packing.journal import Journal, LeftOut
from essa_dist.packing.layouts import Found
from essa_dist.packing.shards import Task, first, write_shards
from essa_dist.packing.source import Source
from essa_dist.packing.splits import side
from essa_dist.packing.summary import count, statistics, write_quarantine

logger = logging.getLogger(__name__)


def write_and_examine(task: Task, journal: Journal) -> tuple[list[LeftOut], Findings]:
    """Write shards, index and findings; all that was left out, and what the guards found.

    Where duplicates are to be dropped, the shards from the first that holds one are packed again without them.
    """
    while True:
        left_out = write_shards(task, journal)
        if not journal.records:
            raise DataError(
                f"none of the {len(task.sources)} files of {task.config.src} holds an image to pack; "
                f"the first: {first(left_out)}"
            )
        journal.join_index(journal.set)
        findings = _examine(journal, task)
        if not findings.drop:
            break
        index = read_index(journal.set)
        splits = np.repeat(
            [record.shard.split for record in journal.records],
            [record.shard.count for record in journal.records],
        )
        logger.info("%d duplicates across splits are dropped: packing without them", len(findings.drop))
        journal.drop({index.key[row]: str(splits[row]) for row in findings.drop})
    findings = findings.model_copy(
        update={"dropped": dict(sorted(Counter(journal.dropped.values()).items()))}
    )
    return left_out, findings


def describe(
    journal: Journal, task: Task, found: Found, left_out: Sequence[LeftOut], findings: Findings
) -> Manifest:
    """Write all that tells of the set: manifest, findings, quarantine and report."""
    config, folder = task.config, journal.set
    write_quarantine(folder, left_out)
    shards = tuple(record.shard for record in journal.records)
    index = read_index(folder)
    samples, counts, patients, bits = count(index, shards, found.classes)
    mean, std = statistics(record.histogram for record in journal.records)
    manifest = Manifest(
        name=config.name or Path(config.out).name,
        label_kind=found.label_kind,
        classes=found.classes,
        mask_classes=found.mask_classes,
        splits=tuple(samples),
        shards=shards,
        counts=counts,
        samples=samples,
        patients=patients,
        bits=bits,
        mean=mean,
        std=std,
        source=config.source or found.defaults.source,
        licence=config.licence or found.defaults.licence,
        attribution=config.attribution or found.defaults.attribution,
        skipped=dict(sorted(Counter(one.reason for one in left_out).items())),
    )
    manifest.write(folder)
    findings.write(folder)
    if config.report:
        from essa_dist.packing.report import DataReportConfig, data_report  # matplotlib

        data_report(DataReportConfig(packed=str(folder)))
    return manifest


def _examine(journal: Journal, task: Task) -> Findings:
    """What the guards find in the set, whose index is written."""
    index = read_index(journal.set)
    splits = tuple(dict.fromkeys(record.shard.split for record in journal.records))
    number = {split: i for i, split in enumerate(splits)}
    counts = [record.shard.count for record in journal.records]
    flags: dict[str, list[int]] = {}
    start = 0
    for record in journal.records:
        for kind, rows in record.flags.items():
            flags.setdefault(kind, []).extend(start + row for row in rows)
        start += record.shard.count
    table = Table(
        key=index.key,
        splits=splits,
        split=np.repeat([number[record.shard.split] for record in journal.records], counts),
        patient=index.patient,
        file=_file_numbers(task.sources)[np.concatenate([record.files for record in journal.records])],
        fingerprint=journal.join_fingerprints(),
        flags={kind: np.array(rows, np.int64) for kind, rows in sorted(flags.items())},
    )
    # Patients were looked at before anything was packed.
    return examine(table, task.config.guards.model_copy(update={"patients": "report"}))


def _file_numbers(sources: Sequence[Source]) -> NDArray[np.int64]:
    """A number for the file of each source. One that is listed in several training splits is the same, and no copy."""
    numbers: dict[tuple[Path, str], int] = {}
    return np.array([numbers.setdefault((one.path, side(str(one.split))), len(numbers)) for one in sources])
