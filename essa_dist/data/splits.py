"""Decide which split and which class number every image of a pack has."""

from collections.abc import Sequence

import numpy as np

from essa_dist.data.manifest import UNLABELLED
from essa_dist.data.plan import stable_seed
from essa_dist.data.sources import Source


def assign_splits(sources: Sequence[Source], splits: dict[str, float], seed: int) -> list[Source]:
    """Give every source a split, and put them in the order of storage: by split, shuffled inside it.

    Both are by a hash of (seed, key): they don't depend on the order of the files.
    """
    shuffled = sorted(sources, key=lambda one: stable_seed("pack", seed, one.key))
    placed = [one for one in shuffled if one.split is not None]
    for label in sorted({one.label for one in shuffled}, key=str):
        free = [one for one in shuffled if one.split is None and one.label == label]
        shares = splits or {"train" if label is not None else UNLABELLED: 1.0}
        bounds = np.rint(np.cumsum([0.0, *shares.values()]) * len(free)).astype(int)
        for split, start, end in zip(shares, bounds, bounds[1:], strict=False):
            placed += [one._replace(split=split) for one in free[start:end]]
    placed = [one._replace(label=None) if one.split == UNLABELLED else one for one in placed]
    return sorted(placed, key=lambda one: (str(one.split), stable_seed("pack", seed, one.key)))


def class_names(names: set[str]) -> tuple[str, ...]:
    """Sorted; numbers by value, so that 10 comes after 9."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
