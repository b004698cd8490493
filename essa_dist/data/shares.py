"""Dividing groups of images (patients, or single images) by shares that hold for every class as well as for all."""

import numpy as np
from numpy.typing import NDArray

# G groups, K kinds (each class, images without one, all images), S shares.


def share_out(
    counts_GK: NDArray[np.float64],
    order: NDArray[np.intp],
    shares_S: NDArray[np.float64],
    held_SK: NDArray[np.float64] | None = None,
) -> NDArray[np.intp]:
    """[G]: which share each group goes to, given in ``order``. Every kind must be in some group.

    ``held_SK``: what each share has too much of (or, below 0, too little) before.

    As seats are given by the method of Webster: a group goes where (held + half of its own) / wanted is least, in the
    mean over its images and their kinds. About 10 microseconds a group.
    """
    wanted_SK = shares_S[:, None] * counts_GK.sum(axis=0)
    held_SK = np.zeros_like(wanted_SK) if held_SK is None else held_SK.copy()
    chosen_G = np.zeros(len(counts_GK), np.intp)
    for group in order:
        counts_K = counts_GK[group]
        fill_S = ((held_SK + counts_K / 2) / wanted_SK) @ counts_K
        chosen_G[group] = best = int(fill_S.argmin())
        held_SK[best] += counts_K
    return chosen_G


def rarest_first(counts_GK: NDArray[np.float64]) -> NDArray[np.intp]:
    """The order for :func:`share_out`: by the rarest kind of each group, larger groups first, else as they come.

    The last kind is all images.
    """
    rarest_G = np.where(counts_GK > 0, counts_GK.sum(axis=0), np.inf).min(axis=1)
    return np.lexsort((-counts_GK[:, -1], rarest_G))
