"""``essa pack index``: scan tars in parallel and write an index and a manifest for them."""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import NONE
from essa_dist.data.manifest import INDEX_FILE, MANIFEST_FILE, QUARANTINE_FILE, REPORT_FILE, Manifest
from essa_dist.data.shard_urls import list_shards, scheme
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.foreign.config import IndexConfig
from essa_dist.packing.foreign.former import Former, is_whole, read_former
from essa_dist.packing.foreign.merge import Merged, merge
from essa_dist.packing.foreign.samples import ONE_IN
from essa_dist.packing.foreign.scan import ShardScan
from essa_dist.packing.foreign.scanning import scan_all
from essa_dist.packing.guards import FINDINGS_FILE, Findings, GuardConfig, Table, examine
from essa_dist.packing.journal import LeftOut
from essa_dist.packing.lock import lock
from essa_dist.packing.summary import count, statistics, write_quarantine

logger = logging.getLogger(__name__)

WORK_FOLDER = ".indexing"
"""In ``out`` while it is made: the scans that are done, so that a killed run goes on where it was."""
SHOWN = 3
"""Bad samples named in an error."""


def index(config: IndexConfig) -> dict[str, Any]:
    """Write index, manifest, findings, quarantine and report for the tars of ``config.src``, and say what was found.

    The tars stay as they are. The same tars and settings give the same bytes, whatever the number of workers and
    however often the run was killed. Memory: about 3 kB a sample.
    Raises UsageError for what can't be meant, DataError where there are no samples or more bad ones than allowed.
    """
    shards = list_shards(config.src)
    out = _out(shards, config)
    former = read_former(out)
    work = out / WORK_FOLDER
    try:
        held = lock(work, f"{out} is being indexed by another process: wait for it, or choose another `out`")
    except OSError as error:
        raise UsageError(
            f"{out} can't be written ({error.strerror}): name another folder, as out=DIR"
        ) from error
    with held:
        try:
            return _index(config, shards, out, former)
        finally:
            if not any(work.glob("*.json")):  # no scan to go on from
                shutil.rmtree(work, ignore_errors=True)


def _index(config: IndexConfig, shards: Sequence[str], out: Path, former: Former) -> dict[str, Any]:
    work = out / WORK_FOLDER
    _refuse_whole(out, config)  # again: another process may have ended since
    scans = scan_all(shards, config, work)
    merged = merge(scans, {shard: _file(shard, out) for shard in shards}, config, former)
    _warn(scans, former, merged)
    write_quarantine(out, [LeftOut(path=where, reason=why, harmless=False) for where, why in merged.bad])
    _check_quota(merged, config, out)
    manifest = _manifest(merged, scans, config, former, out)
    merged.index.write(work)
    manifest.write(work)
    findings = _examine(merged, scans)
    for name in (FINDINGS_FILE, REPORT_FILE):  # of an index that is replaced
        (out / name).unlink(missing_ok=True)
    if findings is not None:
        findings.write(out)
    for name in (INDEX_FILE, MANIFEST_FILE):
        os.replace(work / name, out / name)
    shutil.rmtree(work)
    if config.report:
        from essa_dist.packing.report import DataReportConfig, data_report  # matplotlib

        data_report(DataReportConfig(packed=str(out)))
    return {
        "out": str(out),
        "name": manifest.name,
        "samples": len(merged.index),
        "counts": manifest.counts,
        "shards": len(shards),
        "bytes": sum(one.bytes for one in scans.values()),
        "skipped": manifest.skipped,
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        **({} if findings is None else findings.summary()),
        "report": str(out / REPORT_FILE) if config.report else None,
    }


def _out(shards: Sequence[str], config: IndexConfig) -> Path:
    """The folder to write. Raises UsageError where it must be named, or has an index that must be kept."""
    if config.out is not None:
        out = Path(config.out)
    else:
        folders = {os.path.dirname(os.path.abspath(shard)) for shard in shards}
        if any(scheme(shard) for shard in shards):
            raise UsageError("the tars are remote: name a folder of this machine for their index, as out=DIR")
        out = Path(os.path.commonpath(folders))
    _refuse_whole(out, config)
    return out


def _refuse_whole(out: Path, config: IndexConfig) -> None:
    if is_whole(out) and not config.overwrite:
        raise UsageError(
            f"{out} has an index already: set overwrite=true to make it anew, or choose another `out`"
        )


def _file(shard: str, out: Path) -> str:
    """What the manifest calls a tar: its path from ``out``, or in full where it lies elsewhere."""
    if scheme(shard):
        return shard
    path, folder = os.path.abspath(shard), os.path.abspath(out)
    return os.path.relpath(path, folder) if path.startswith(folder + os.sep) else path


def _warn(scans: Mapping[str, ShardScan], former: Former, merged: Merged) -> None:
    for where, reason in merged.bad:
        logger.warning("left out %s: %s", where, reason)
    turned = sum(one.turned for one in scans.values())
    if turned:
        logger.warning(
            "%d images ask by EXIF to be turned, which is not done for tars that stay as they are; `essa pack` does it",
            turned,
        )
    if former.patients and (merged.index.patient == NONE).all():
        logger.warning("the patients were known to the lost index alone: the new one has none")


def _examine(merged: Merged, scans: Mapping[str, ShardScan]) -> Findings | None:
    """What the guards find; None where not all images were decoded."""
    if not all(one.fingerprints or not one.rows for one in scans.values()):
        return None
    table = Table(
        key=merged.index.key,
        splits=(splits := tuple(dict.fromkeys(shard.split for shard in merged.shards))),
        split=np.repeat(
            [splits.index(shard.split) for shard in merged.shards], [shard.count for shard in merged.shards]
        ),
        patient=merged.index.patient,
        file=np.arange(len(merged.index)),
        fingerprint=np.concatenate([one.fingerprint_rows() for one in scans.values()])[merged.rows],
        flags=_flags(merged, scans),
    )
    return examine(table, GuardConfig(patients="report"))


def _flags(merged: Merged, scans: Mapping[str, ShardScan]) -> dict[str, NDArray[np.int64]]:
    """Kind of privacy finding -> rows of the index."""
    found: dict[str, list[int]] = {}
    place = {int(row): i for i, row in enumerate(merged.rows)}
    start = 0
    for one in scans.values():
        for kind, rows in one.flags.items():
            found.setdefault(kind, []).extend(place[start + row] for row in rows if start + row in place)
        start += len(one.rows)
    return {kind: np.sort(np.array(rows, np.int64)) for kind, rows in sorted(found.items()) if rows}


def _check_quota(merged: Merged, config: IndexConfig, out: Path) -> None:
    bad = len(merged.bad)
    first = ", ".join(f"{where} ({reason})" for where, reason in merged.bad[:SHOWN])
    if not len(merged.index):
        raise DataError(
            f"no usable sample in the tars of {config.src}" + (f"; first {first}" if first else "")
        )
    total = len(merged.index) + bad
    allowed = config.quota.allowed(total)
    if bad > allowed:
        raise DataError(
            f"{bad} of {total} samples can't be used, {allowed} are allowed; first {first}; all are in "
            f"{out / QUARANTINE_FILE}; mend the tars, or raise quota.count or quota.fraction"
        )


def _manifest(
    merged: Merged, scans: Mapping[str, ShardScan], config: IndexConfig, former: Former, out: Path
) -> Manifest:
    mean, std = statistics(one.histogram for one in scans.values() if one.histogram)
    if config.check == "header":
        logger.info("mean and std are of one image in %d", ONE_IN)
    top = max(one.mask_top for one in scans.values())
    has_masks = bool((merged.index.mask_length > 0).any())
    mask_classes = config.mask_classes or former.mask_classes or ("background", *map(str, range(1, top + 1)))
    if has_masks and top >= len(mask_classes):
        raise UsageError(
            f"the masks hold {top + 1} classes, mask_classes names {len(mask_classes)}: name them all"
        )
    samples, counts, patients, bits = count(merged.index, merged.shards, merged.classes)
    return Manifest(
        name=config.name or former.name or out.resolve().name,
        label_kind=merged.label_kind,
        classes=merged.classes,
        mask_classes=mask_classes if has_masks else (),
        splits=tuple(samples),
        shards=merged.shards,
        counts=counts,
        samples=samples,
        patients=patients,
        bits=bits,
        mean=mean,
        std=std,
        source=config.source or former.source,
        licence=config.licence or former.licence,
        attribution=config.attribution or former.attribution,
        skipped=dict(sorted(Counter(reason for _, reason in merged.bad).items())),
    )
