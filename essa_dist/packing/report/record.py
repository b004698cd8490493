"""Everything that a packed set says of itself, read once for the page."""

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import NONE, Index, read_index
from essa_dist.data.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    QUARANTINE_FILE,
    UNLABELLED,
    Manifest,
    read_manifest,
)
from essa_dist.data.shards import PackedImages
from essa_dist.data.storage import LocalShards
from essa_dist.errors import DataError
from essa_dist.packing.guards.findings import Findings, read_findings

EXAMPLES = 3
"""Files that are named for each reason of quarantine."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """A packed set with the index of all its splits."""

    folder: Path
    manifest: Manifest
    index: Index
    findings: Findings | None
    quarantine: dict[str, list[str]]
    """Reason -> the first files left out for it."""

    @cached_property
    def images(self) -> PackedImages:
        """Pictures by their row in the whole index."""
        shards = LocalShards(self.folder, self.manifest.shards)
        return PackedImages(self.folder, self.manifest, "", self.index, shards)

    @cached_property
    def split(self) -> NDArray[np.int64]:
        """Position of each sample's split in ``manifest.splits``, [n]."""
        shards = self.manifest.shards
        places = [self.manifest.splits.index(shard.split) for shard in shards]
        return np.repeat(np.array(places, np.int64), [shard.count for shard in shards])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which holds that of every tar."""
        return hashlib.sha256((self.folder / MANIFEST_FILE).read_bytes()).hexdigest()

    def labels(self) -> list[tuple[str, Rows]]:
        """Each class with the rows of its samples, then ``unlabelled`` with those of none; empty ones too."""
        if self.index.labels is not None:
            rows = [(name, np.flatnonzero(self.index.labels[:, i] == 1)) for i, name in self._classes()]
            return [*rows, (UNLABELLED, np.flatnonzero((self.index.labels != 1).all(axis=1)))]
        label = np.asarray(self.index.label)
        rows = [(name, np.flatnonzero(label == i)) for i, name in self._classes()]
        return [*rows, (UNLABELLED, np.flatnonzero(label == NONE))]

    def _classes(self) -> Sequence[tuple[int, str]]:
        return list(enumerate(self.manifest.classes))


def read_packed(folder: Path) -> Packed:
    """Raises UsageError where ``folder`` is no packed set, DataError where it is damaged."""
    manifest, index = read_manifest(folder), read_index(folder)
    if len(index) != sum(shard.count for shard in manifest.shards):
        raise DataError(
            f"{folder / INDEX_FILE} lists {len(index)} samples, not those of the manifest: pack again"
        )
    return Packed(folder, manifest, index, read_findings(folder), _read_quarantine(folder))


def _read_quarantine(folder: Path) -> dict[str, list[str]]:
    path = folder / QUARANTINE_FILE
    if not path.is_file():
        return {}
    found: dict[str, list[str]] = {}
    seen: Counter[str] = Counter()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            reason = row.get("reason") or "?"
            seen[reason] += 1
            if seen[reason] <= EXAMPLES:
                found.setdefault(reason, []).append(row.get("path") or "?")
    return found
