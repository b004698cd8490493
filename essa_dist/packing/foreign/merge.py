"""From the scans of all tars to the samples of the set: classes, splits, patients, keys, order."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import NONE, Index
from essa_dist.data.manifest import UNLABELLED, Shard
from essa_dist.packing.foreign.config import IndexConfig
from essa_dist.packing.foreign.former import Former, shard_splits
from essa_dist.packing.foreign.labels import Labels, resolve
from essa_dist.packing.foreign.samples import Row
from essa_dist.packing.foreign.scan import ShardScan
from essa_dist.packing.splits import side
from essa_dist.packing.writer import DTYPES

logger = logging.getLogger(__name__)

NOT_OF_A_ROW = ("shard", "label", "patient")


@dataclass(frozen=True)
class Merged:
    """A data set, ready to be written."""

    index: Index
    shards: tuple[Shard, ...]
    label_kind: Literal["none", "single", "multi"]
    classes: tuple[str, ...]
    rows: NDArray[np.int64]
    """Of each sample, its place among the rows of all scans."""
    bad: list[tuple[str, str]]
    """``shard`` or ``shard:key``, and the reason."""


def merge(
    scans: Mapping[str, ShardScan], files: Mapping[str, str], config: IndexConfig, former: Former
) -> Merged:
    """Join the scans, by path or URL of their tar. ``files``: what the manifest calls each tar.

    Raises UsageError where the split of a tar can't be told.
    """
    short = short_names(list(scans))
    bad = [(_where(short[shard], key), why) for shard, one in scans.items() for key, why in one.bad]
    bad += _changed(scans, files, short, former)
    rows = [(shard, row) for shard, one in scans.items() for row in one.rows]
    labels = resolve([row.facts for _, row in rows], config, former.classes)
    splits = _row_splits(rows, labels, short, config, former)
    refused = labels.bad | _without_label(splits, labels, allowed=config.quota.allowed(len(rows)))
    bad += [(_where(short[rows[i][0]], rows[i][1].key), why) for i, why in refused.items()]
    place = {shard: i for i, shard in enumerate(scans)}
    kept = [i for i in range(len(rows)) if i not in refused]
    order = sorted(kept, key=lambda i: (splits[i], place[rows[i][0]], i))
    shards, counts = [], []
    for (split, shard), members in groupby(order, key=lambda i: (splits[i], rows[i][0])):
        counts.append(sum(1 for _ in members))
        of = scans[shard]
        shards.append(
            Shard(file=files[shard], split=split, count=counts[-1], bytes=of.bytes, sha256=of.sha256)
        )
    chosen, picked = [rows[i] for i in order], np.array(order, np.int64)
    patient = _patients([row for _, row in chosen])
    _warn_of_shared(patient, [splits[i] for i in order])
    index = Index(
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        label=labels.numbers[picked],
        labels=None if labels.flags is None else labels.flags[picked],
        patient=patient,
        key=_keys(chosen, short),
        **{
            name: np.array([getattr(row, name) for _, row in chosen], dtype)
            for name, dtype in DTYPES.items()
            if name not in NOT_OF_A_ROW
        },
    )
    return Merged(index, tuple(shards), labels.kind, labels.classes, picked, bad)


def short_names(shards: Sequence[str]) -> dict[str, str]:
    """Each tar's name below the folder that all are in."""
    folders = [shard.split("/")[:-1] for shard in shards]
    levels = enumerate(zip(*folders, strict=False))
    depth = next((i for i, names in levels if len(set(names)) > 1), min(map(len, folders)))
    return {shard: "/".join(shard.split("/")[depth:]) for shard in shards}


def _where(shard: str, key: str) -> str:
    return f"{shard}:{key}" if key else shard


def _changed(
    scans: Mapping[str, ShardScan], files: Mapping[str, str], short: Mapping[str, str], former: Former
) -> list[tuple[str, str]]:
    """Tars that are not what an earlier manifest says: no checksum of their images is left to tell which changed."""
    expected = {shard: former.sha256.get(files[shard]) for shard in scans}
    return [
        (short[shard], "its bytes have changed since it was packed (sha256)")
        for shard, one in scans.items()
        if one.rows and expected[shard] not in (None, one.sha256)
    ]


def _row_splits(
    rows: Sequence[tuple[str, Row]],
    labels: Labels,
    short: Mapping[str, str],
    config: IndexConfig,
    former: Former,
) -> list[str]:
    """What ``config.splits`` says of the tar, else the sample's json, else the tar's name; else all are the same."""
    own = [None if config.splits else row.facts.split for _, row in rows]
    asked = {shard: short[shard] for (shard, _), split in zip(rows, own, strict=True) if split is None}
    of_shard = shard_splits(asked, config.splits, former)
    default = UNLABELLED if labels.kind == "none" else "train"
    return [split or of_shard[shard] or default for split, (shard, _) in zip(own, rows, strict=True)]


def _without_label(splits: list[str], labels: Labels, *, allowed: int) -> dict[int, str]:
    """In splits that have labels: a few samples without one are left out, many go to the split of the unlabelled.

    One sample without a label would deprive its whole split of labels. Changes ``splits``.
    """
    labelled = {split for i, split in enumerate(splits) if labels.known(i)} - {UNLABELLED}
    lacking = [
        i
        for i, split in enumerate(splits)
        if split in labelled and not labels.known(i) and i not in labels.bad
    ]
    if len(lacking) <= allowed:
        return dict.fromkeys(lacking, "no label")
    logger.warning("%d samples without a label go to the split %s", len(lacking), UNLABELLED)
    for i in lacking:
        splits[i] = UNLABELLED
    return {}


def _patients(rows: Sequence[Row]) -> NDArray[np.int32]:
    known = sorted({row.facts.patient for row in rows if row.facts.patient is not None})
    number = {patient: i for i, patient in enumerate(known)}
    return np.array(
        [NONE if row.facts.patient is None else number[row.facts.patient] for row in rows], np.int32
    )


def _warn_of_shared(patient: NDArray[np.int32], splits: Sequence[str]) -> None:
    pairs = {(side(split), int(one)) for split, one in zip(splits, patient, strict=True) if one != NONE}
    shared = [one for one, splits_of in Counter(one for _, one in pairs).items() if splits_of > 1]
    if shared:
        logger.warning(
            "patients in more than one split: %d; scores on one will be too good after training on the other",
            len(shared),
        )


def _keys(rows: Sequence[tuple[str, Row]], short: Mapping[str, str]) -> list[str]:
    """Keys that are unique in the set: where tars number their samples alike, the tar's name goes before all of them."""
    keys = [row.key for _, row in rows]
    if len(set(keys)) == len(keys):
        return keys
    logger.info("some keys are in several tars: all get the name of their tar before them")
    return [f"{short[shard].removesuffix('.tar')}/{row.key}" for shard, row in rows]
