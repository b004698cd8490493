"""All pairs of 64-bit hashes within a Hamming distance, exactly.

Multi-index hashing (M. Norouzi, A. Punjani and D. Fleet, Fast exact search in Hamming space, 2014): the 64 bits are
cut into four parts of 16. Two hashes at a distance of at most r_1 + ... + r_4 + 3 agree in some part i up to r_i bits,
so that only hashes with like parts need comparing.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PARTS = 4
WIDTH = 16
VALUES = 1 << WIDTH
BLOCK = 1 << 21
"""Comparisons made at once: about 100 MB."""
WORTH_IT = 8
"""A comparison found by parts costs as much as this many of those of all with all, measured."""

Rows = NDArray[np.int64]


class Bucketed(NamedTuple):
    """Hashes in the order of one of their parts."""

    rows: Rows
    hashes: NDArray[np.uint64]
    part: NDArray[np.int64]
    starts: Rows  # [VALUES + 1]: where the hashes with each value of the part begin


def close_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[tuple[Rows, Rows]]:
    """Every pair of positions (a, b), a < b, of hashes that differ in at most ``distance`` bits, once, in blocks.

    Time on one core: 3 s for 100,000 hashes, look-alikes or not; one to two minutes for a million of unlike pictures, at
    worst (all with all) about 15.
    """
    hashes = _spread_evenly(hashes)
    radii = [(distance - i) // PARTS for i in range(PARTS)]
    buckets = [_bucket(hashes, i) for i in range(PARTS)]
    masks = [[m for bits in range(radius + 1) for m in _masks(bits)] for radius in radii]
    comparisons = sum(_comparisons(bucket, m) for bucket, ms in zip(buckets, masks, strict=True) for m in ms)
    if comparisons * WORTH_IT > len(hashes) ** 2 / 2:
        yield from _all_with_all(hashes, distance)
        return
    for i, bucket in enumerate(buckets):
        for mask in masks[i]:
            for a, b in _like(bucket, mask, distance):
                new = _unlike_before(hashes[a] ^ hashes[b], radii[:i])
                yield np.minimum(a, b)[new], np.maximum(a, b)[new]


def _spread_evenly(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same bits in another order, the same for all, so that each part has its share of bits that tell hashes apart.

    In like pictures some bits are nearly always the same: a part made of these would put all into one bucket.
    """
    bits = np.unpackbits(hashes.astype(">u8")[:, None].view(np.uint8), axis=1)  # [n, 64]
    telling = np.argsort(np.abs(bits.mean(axis=0) - 0.5), kind="stable") if len(bits) else np.arange(64)
    dealt = telling.reshape(WIDTH, PARTS).T.ravel()
    packed = np.packbits(np.ascontiguousarray(bits[:, dealt]), axis=1)
    return np.ascontiguousarray(packed).view(">u8")[:, 0].astype(np.uint64)


def _part(hashes: NDArray[np.uint64], i: int) -> NDArray[np.int64]:
    return ((hashes >> np.uint64(WIDTH * i)) & np.uint64(VALUES - 1)).astype(np.int64)


def _bucket(hashes: NDArray[np.uint64], i: int) -> Bucketed:
    part = _part(hashes, i)
    rows = np.argsort(part, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=VALUES))])
    return Bucketed(rows, hashes[rows], part[rows], starts)


def _masks(bits: int) -> list[int]:
    """All numbers of WIDTH bits with ``bits`` of them set."""
    return [sum(1 << place for place in places) for places in combinations(range(WIDTH), bits)]


def _comparisons(bucket: Bucketed, mask: int) -> int:
    counts = np.diff(bucket.starts)
    return int(counts @ counts[np.arange(VALUES) ^ mask]) // 2


def _like(bucket: Bucketed, mask: int, distance: int) -> Iterator[tuple[Rows, Rows]]:
    """Rows of pairs within ``distance`` whose parts differ in exactly the bits of ``mask``; each pair once."""
    places = np.arange(len(bucket.rows))
    other = bucket.part ^ mask
    first = places + 1 if mask == 0 else bucket.starts[other]
    counts = np.where(other >= bucket.part, bucket.starts[other + 1] - first, 0)
    (left,) = np.nonzero(counts)
    ends = np.cumsum(counts[left])
    begin = 0
    while begin < len(left):
        done = ends[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        some = left[begin:stop]
        a = np.repeat(some, counts[some])
        b = np.arange(len(a)) - np.repeat(ends[begin:stop] - counts[some] - done - first[some], counts[some])
        near = np.bitwise_count(bucket.hashes[a] ^ bucket.hashes[b]) <= distance
        yield bucket.rows[a[near]], bucket.rows[b[near]]
        begin = stop


def _unlike_before(difference: NDArray[np.uint64], radii: list[int]) -> NDArray[np.bool_]:
    """Whether the pairs were not found by an earlier part."""
    new = np.ones(len(difference), bool)
    for i, radius in enumerate(radii):
        new &= np.bitwise_count(_part(difference, i)) > radius
    return new


def _all_with_all(hashes: NDArray[np.uint64], distance: int) -> Iterator[tuple[Rows, Rows]]:
    high = max(1, BLOCK // max(len(hashes), 1))
    for start in range(0, len(hashes), high):
        rows = hashes[start : start + high, None]
        near = np.bitwise_count(rows ^ hashes[None, start:]) <= distance
        a, b = np.nonzero(near)
        yield (a + start)[a < b], (b + start)[a < b]
