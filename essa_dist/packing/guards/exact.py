"""The same pixels, whatever the file format."""

import numpy as np
from numpy.typing import NDArray

from essa_dist.packing.guards.hamming import Rows
from essa_dist.packing.guards.table import Table


def groups(table: Table, rank: NDArray[np.int64]) -> tuple[Rows, NDArray[np.bool_]]:
    """Rows sorted so that the same pixels are neighbours, those of the first split (by ``rank``) first.

    Also whether each begins a new picture.
    """
    exact = table.fingerprint["exact"]
    order = np.lexsort((np.arange(len(table)), rank, exact[:, 1], exact[:, 0]))
    words = exact[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (words[1:] != words[:-1]).any(axis=1)
    return order, begins


def copies(table: Table, order: Rows, begins: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Pairs (first, further copy) of the same pixels in different files."""
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    file = np.asarray(table.file)
    apart = ~begins & (file[first] != file[order])
    return first[apart], order[apart]


def one_of_each(order: Rows, begins: NDArray[np.bool_], rank: NDArray[np.int64]) -> Rows:
    """For each picture its first row in every split, ascending."""
    of_split = begins.copy()
    of_split[1:] |= rank[order[1:]] != rank[order[:-1]]
    return np.sort(order[of_split])
