"""How much CUDA's caching allocator takes from the device for a sequence of allocations.

Source of the rules: PyTorch, c10/cuda/CUDACachingAllocator.cpp (defaults, without expandable segments): sizes are rounded
to 512 bytes; up to 1 MiB they come from segments of 2 MiB, up to 10 MiB from segments of 20 MiB, larger ones from
segments rounded to 2 MiB; the smallest free block that is large enough is taken, and split unless little would be left.
Segments are never given back here, as there while memory lasts.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Any

MIB = 2**20
ROUND, SMALL, LARGE_FROM = 512, MIB, 10 * MIB
SMALL_SEGMENT, MIDDLE_SEGMENT, ROUND_LARGE = 2 * MIB, 20 * MIB, 2 * MIB


class _Piece:
    """A part of a segment; its neighbours are where it would merge."""

    __slots__ = ("before", "behind", "free", "number", "size", "small")

    def __init__(self, size: int, number: int, small: bool) -> None:
        self.size, self.number, self.small = size, number, small
        self.free = True
        self.before: _Piece | None = None
        self.behind: _Piece | None = None


class _Pool:
    """Free pieces in order of size."""

    def __init__(self) -> None:
        self.order: list[tuple[int, int]] = []
        self.pieces: dict[int, _Piece] = {}

    def add(self, piece: _Piece) -> None:
        piece.free = True
        insort(self.order, (piece.size, piece.number))
        self.pieces[piece.number] = piece

    def remove(self, piece: _Piece) -> None:
        del self.order[bisect_left(self.order, (piece.size, piece.number))]
        del self.pieces[piece.number]
        piece.free = False

    def take(self, size: int) -> _Piece | None:
        at = bisect_left(self.order, (size, -1))
        if at == len(self.order):
            return None
        piece = self.pieces[self.order[at][1]]
        self.remove(piece)
        return piece


def reserved_peak(events: Iterable[tuple[int, int]], sizes: Any) -> int:
    """Bytes taken from the device in the end for ``events``: (1, n) allocates ``sizes[n]`` bytes, (-1, n) frees them."""
    pools = {True: _Pool(), False: _Pool()}
    held: dict[int, _Piece] = {}
    reserved = count = 0
    for sign, n in events:
        if sign < 0:
            _free(held.pop(n), pools)
            continue
        size = max(ROUND, -(-int(sizes[n]) // ROUND) * ROUND)
        small = size <= SMALL
        piece = pools[small].take(size)
        if piece is None:
            count += 1
            piece = _Piece(_segment(size), count, small)
            piece.free = False
            reserved += piece.size
        left = piece.size - size
        if left >= ROUND if small else left > SMALL:
            count += 1
            rest = _Piece(left, count, small)
            rest.before, rest.behind, piece.size = piece, piece.behind, size
            if rest.behind is not None:
                rest.behind.before = rest
            piece.behind = rest
            pools[small].add(rest)
        held[n] = piece
    return reserved


def _segment(size: int) -> int:
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < LARGE_FROM:
        return MIDDLE_SEGMENT
    return -(-size // ROUND_LARGE) * ROUND_LARGE


def _free(piece: _Piece, pools: dict[bool, _Pool]) -> None:
    pool = pools[piece.small]
    if (behind := piece.behind) is not None and behind.free:
        pool.remove(behind)
        piece.size, piece.behind = piece.size + behind.size, behind.behind
        if piece.behind is not None:
            piece.behind.before = piece
    if (before := piece.before) is not None and before.free:
        pool.remove(before)
        before.size, before.behind = before.size + piece.size, piece.behind
        if before.behind is not None:
            before.behind.before = before
        piece = before
    pool.add(piece)
