"""Loops over slices of rows, seen for all of them at once: with the numbers of rows of a planned step they would never end.

Inside :func:`in_slices` such a loop is run twice: first for all its slices, whose operations count so many times, then for
none, which shows what is in memory when a slice isn't the first.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor

from essa_dist.losses import prototypes
from essa_dist.losses.prototypes import PIECE
from essa_dist.objectives import cross_entropies
from essa_dist.planning.sizes import Size, size_of
from essa_dist.planning.tracker import Tracker

FEW = 8
"""Slices that are all run."""


@contextmanager
def in_slices(tracker: Tracker) -> Iterator[None]:
    """Inside, the prototypes' cross-entropies are computed slice by slice as told above."""

    def spans(size: int, step: int) -> Iterator[tuple[int, int]]:
        if size <= FEW * step:
            yield from ((start, min(start + step, size)) for start in range(0, size, step))
            return
        outer = tracker.repeats
        try:
            for number in range(2):
                tracker.repeats = none(outer) if number else times(outer, size_of(size), 1 / step)
                yield number * step, (number + 1) * step
        finally:
            tracker.repeats = outer

    def cut(targets: Sequence[Any], start: int, stop: int) -> Iterator[tuple[int, Any]]:
        outer = tracker.repeats
        try:
            for one in targets:
                if outer.factor or outer.more:  # all slices of this kind of target, not of all
                    tracker.repeats = times(Size(1.0, 0, 0), size_of(one.size()), 1 / (stop - start))
                yield start, one.part(0, stop - start)
        finally:
            tracker.repeats = outer

    def pieces(apart: Any) -> Iterator[Tensor]:
        for start, stop in spans(len(apart.rows), PIECE):
            yield apart.rows[start:stop] @ apart.weight.T

    with ExitStack() as patched:
        patched.enter_context(patch.object(prototypes, "spans", spans))
        patched.enter_context(patch.object(prototypes, "_cut", cut))
        patched.enter_context(patch.object(cross_entropies, "pieces", pieces))
        yield


def none(size: Size) -> Size:
    return size._replace(factor=0.0, more=0.0)


def times(one: Size, other: Size, factor: float = 1.0) -> Size:
    """The product, of which one is to be a constant; else the larger counts alone."""
    if other.is_constant:
        one, other = other, one
    if not one.is_constant:
        return other
    scale = one.factor * factor
    return other._replace(factor=scale * other.factor, more=scale * other.more)
