"""Look at all samples of a set together: patients and pictures in two splits, findings about privacy."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import NONE
from essa_dist.errors import DataError
from essa_dist.packing.guards.config import GuardConfig
from essa_dist.packing.guards.exact import copies, groups, one_of_each
from essa_dist.packing.guards.findings import Duplicates, Examples, Findings, Pair
from essa_dist.packing.guards.hamming import Rows
from essa_dist.packing.guards.near import MOST, near_pairs
from essa_dist.packing.guards.table import Table

EXAMPLES = 10
"""Keys that are named of each kind of finding."""

Scores = NDArray[np.float32]


def examine(table: Table, config: GuardConfig) -> Findings:
    """What is found in all samples, and which rows are to be left out (``drop``).

    Raises DataError, naming an example, where the settings refuse what is found. Memory: 100 bytes a sample beside
    the table, of which the thumbnails are read only where hashes are alike.
    """
    rank = split_order(table.splits, config.keep)[np.asarray(table.split, np.int64)]
    patients = _patients_across(table)
    if patients.count and config.patients == "refuse":
        raise DataError(
            f"{patients.count} patients are in more than one split, e.g. those of {', '.join(patients.keys[:3])}: "
            "mend the list, or accept it with guards.patients=report"
        )
    order, begins = groups(table, rank)
    a, b = copies(table, order, begins)
    side = table.side
    drop = [b[side[a] != side[b]]] if config.exact == "drop" else []
    exact = _duplicates(table, a, b, np.ones(len(a), np.float32), rank, config.pairs)
    _refuse("exact", exact, config.exact)
    near, notes = None, []
    if config.near != "ignore":
        found = near_pairs(table, one_of_each(order, begins, rank), config.similarity)
        near = _duplicates(table, found.a, found.b, found.similarity, rank, config.pairs)
        _refuse("near", near, config.near)
        if config.near == "drop":
            drop.append(_later_copies(table, found.a, found.b, rank, order, begins))
        if not found.complete:
            notes.append(f"near duplicates: the search ended after {MOST:,} look-alikes; there may be more")
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *drop]))
    left_out = Counter(table.splits[s] for s in np.asarray(table.split)[rows].tolist())
    return Findings(
        samples=len(table),
        exact=exact,
        near=near,
        patients_across=patients,
        flags={kind: _examples(table, rows) for kind, rows in sorted(table.flags.items())},
        dropped={split: left_out[split] for split in table.splits if left_out[split]},
        notes=tuple(notes),
        drop=tuple(rows.tolist()),
    )


def split_order(splits: tuple[str, ...], keep: tuple[str, ...]) -> NDArray[np.int64]:
    """The rank of each split: those of ``keep`` first, then the others as they come."""
    first = [name for name in keep if name in splits]
    ranked = [*first, *(name for name in splits if name not in first)]
    return np.array([ranked.index(name) for name in splits], np.int64)


def _patients_across(table: Table) -> Examples:
    patient = np.asarray(table.patient, np.int64)
    (known,) = np.nonzero(patient != NONE)
    places, first = np.unique(
        patient[known] * len(table.splits) + table.side[known], return_index=True
    )  # a patient on a side
    owner = places // max(len(table.splits), 1)
    again = np.flatnonzero(owner[1:] == owner[:-1]) + 1
    patients, where = np.unique(owner[again], return_index=True)
    rows = known[first[again[where]]]
    return Examples(count=len(patients), keys=tuple(table.key[int(row)] for row in rows[:EXAMPLES]))


def _examples(table: Table, rows: NDArray[np.integer]) -> Examples:
    return Examples(count=len(rows), keys=tuple(table.key[int(row)] for row in rows[:EXAMPLES]))


def _duplicates(
    table: Table, a: Rows, b: Rows, score: Scores, rank: NDArray[np.int64], cap: int
) -> Duplicates:
    """Counts of pairs, and the ``cap`` that matter most."""
    turned = rank[a] > rank[b]
    a, b = np.where(turned, b, a), np.where(turned, a, b)
    split, patient = np.asarray(table.split), np.asarray(table.patient)
    side = table.side
    across = side[a] != side[b]
    same = (patient[a] == patient[b]) & (patient[a] != NONE)
    named = np.lexsort((b, a, -score, ~across))[:cap]
    kinds, counts = np.unique(split[a] * len(table.splits) + split[b], return_counts=True)
    names = [divmod(int(kind), len(table.splits)) for kind in kinds]
    return Duplicates(
        across=int(across.sum()),
        inside=int((~across).sum()),
        same_patient=int(same.sum()),
        by_splits={
            f"{table.splits[s]}|{table.splits[t]}": int(count)
            for (s, t), count in zip(names, counts, strict=True)
        },
        pairs=tuple(
            Pair(
                a=table.key[int(a[i])],
                b=table.key[int(b[i])],
                splits=(table.splits[int(split[a[i]])], table.splits[int(split[b[i]])]),
                similarity=round(float(score[i]), 3),
                same_patient=bool(same[i]),
            )
            for i in named
        ),
        left_off=len(a) - len(named),
    )


def _refuse(kind: str, found: Duplicates, policy: str) -> None:
    if policy == "refuse" and found.across:
        one = found.pairs[0] if found.pairs else None
        example = f", e.g. {one.a} ({one.splits[0]}) and {one.b} ({one.splits[1]})" if one else ""
        raise DataError(
            f"{found.across} {kind} duplicates across splits{example}: leave them out with guards.{kind}=drop, "
            f"or accept them with guards.{kind}=report"
        )


def _later_copies(
    table: Table, a: Rows, b: Rows, rank: NDArray[np.int64], order: Rows, begins: NDArray[np.bool_]
) -> Rows:
    """Rows with the pixels and for the purpose of the later one of each pair that crosses splits."""
    side = table.side
    later = np.where(rank[a] > rank[b], a, b)[side[a] != side[b]]
    picture = np.empty(len(order), np.int64)
    picture[order] = np.cumsum(begins)
    group = picture * len(table.splits) + side
    return np.flatnonzero(np.isin(group, group[later]))
