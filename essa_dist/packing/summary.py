"""What the manifest says of all samples, from the finished shards."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import NONE, Index
from essa_dist.data.manifest import QUARANTINE_FILE, UNLABELLED, Shard
from essa_dist.packing.journal import LeftOut

RGB = tuple[float, float, float]


class Counts(NamedTuple):
    """By split, in the order of the shards; see the fields of Manifest."""

    samples: dict[str, int]
    counts: dict[str, dict[str, int]]
    patients: dict[str, int]
    bits: dict[str, int]
    """Of all splits together."""


def count(index: Index, shards: Sequence[Shard], classes: Sequence[str]) -> Counts:
    """Samples by split, by split and class, patients by split, and samples by bit depth."""
    depths = zip(*np.unique(index.bits, return_counts=True), strict=True)
    result = Counts({}, {}, {}, {str(bits): int(n) for bits, n in depths})
    start = 0
    for split in dict.fromkeys(shard.split for shard in shards):
        stop = start + sum(shard.count for shard in shards if shard.split == split)
        rows = index.rows(start, stop)
        result.samples[split] = stop - start
        result.counts[split] = _by_class(rows, classes)
        if int(index.patient.max()) != NONE:
            result.patients[split] = len(np.unique(rows.patient[rows.patient != NONE]))
        start = stop
    return result


def statistics(histograms: Iterable[Sequence[Sequence[int]]]) -> tuple[RGB, RGB]:
    """Mean and standard deviation per channel over the histograms [3, 256] of all shards, on the scale 0..1."""
    pixels: NDArray[np.int64] = sum(
        (np.array(one, np.int64) for one in histograms), np.zeros((3, 256), np.int64)
    )
    share = pixels / pixels.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    return _rounded(mean), _rounded(std)


def write_quarantine(folder: Path, left_out: Sequence[LeftOut]) -> None:
    """Write ``folder/quarantine.csv``, unless there is nothing to name."""
    path = folder / QUARANTINE_FILE
    path.unlink(missing_ok=True)
    if not left_out:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "reason"])
        rows.writerows(sorted((one.path, one.reason) for one in left_out))


def _by_class(rows: Index, classes: Sequence[str]) -> dict[str, int]:
    if rows.labels is not None:
        found = {name: int(n) for name, n in zip(classes, (rows.labels == 1).sum(axis=0), strict=True)}
        unlabelled = int((rows.labels == NONE).all(axis=1).sum())
    else:
        numbers = dict(
            zip(*(column.tolist() for column in np.unique(rows.label, return_counts=True)), strict=True)
        )
        unlabelled = numbers.pop(NONE, 0)
        found = {classes[number]: n for number, n in numbers.items()}
    return (
        dict(sorted({**found, UNLABELLED: unlabelled}.items())) if unlabelled else dict(sorted(found.items()))
    )


def _rounded(values: NDArray[np.float64]) -> RGB:
    red, green, blue = (round(float(value), 5) for value in values)
    return red, green, blue
