"""Rows in slices, seen for all of them at once: with the numbers of rows of a planned step their loops would never end.

Such a loop is run twice: first for all its slices, whose operations count so many times, then for none, which shows what is
in memory when a slice isn't the first.
"""

from collections.abc import Iterator, Sequence

from essa_dist.losses.slices import R, Slices
from essa_dist.planning.sizes import Size, size_of
from essa_dist.planning.tracker import Tracker

FEW = 8
"""Slices that are all run."""


class CountedSlices(Slices):
    """Tells ``tracker`` how often what runs now is to count."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def spans(self, size: int, step: int) -> Iterator[tuple[int, int]]:
        """See :class:`Slices`."""
        if size <= FEW * step:
            yield from super().spans(size, step)
            return
        outer = self.tracker.repeats
        try:
            for number in range(2):
                self.tracker.repeats = none(outer) if number else times(outer, size_of(size), 1 / step)
                yield number * step, (number + 1) * step
        finally:
            self.tracker.repeats = outer

    def cut(self, groups: Sequence[R], start: int, stop: int) -> Iterator[tuple[int, R]]:
        """See :class:`Slices`; a part of every group."""
        outer = self.tracker.repeats
        try:
            for one in groups:
                if outer.factor or outer.more:  # all slices of this group, not of all
                    self.tracker.repeats = times(Size(1.0, 0, 0), size_of(one.size()), 1 / (stop - start))
                yield start, one.part(0, stop - start)
        finally:
            self.tracker.repeats = outer


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
