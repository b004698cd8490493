"""How losses go through many rows: some at a time, all of them.

Whoever looks at a loss without computing it (``planning``) goes through them otherwise, inside :func:`going`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, Self, TypeVar


class Rows(Protocol):
    """Rows of which a part can be taken."""

    def size(self) -> int:
        """How many."""
        ...

    def part(self, start: int, stop: int) -> Self:
        """Those from ``start`` up to, not with, ``stop``."""
        ...


R = TypeVar("R", bound=Rows)


class Slices:
    """From the first row to the last."""

    def spans(self, size: int, step: int) -> Iterator[tuple[int, int]]:
        """See :func:`spans`."""
        return ((start, min(start + step, size)) for start in range(0, size, step))

    def cut(self, groups: Sequence[R], start: int, stop: int) -> Iterator[tuple[int, R]]:
        """See :func:`cut`."""
        begin = 0
        for one in groups:
            low, high = max(start, begin), min(stop, begin + one.size())
            if low < high:
                yield low, one.part(low - begin, high - begin)
            begin += one.size()


IN_ORDER = Slices()
_slices: ContextVar[Slices] = ContextVar("slices", default=IN_ORDER)


def spans(size: int, step: int) -> Iterator[tuple[int, int]]:
    """Beginning and end of each ``step`` of ``size`` rows, to be taken one after the other."""
    return _slices.get().spans(size, step)


def cut(groups: Sequence[R], start: int, stop: int) -> Iterator[tuple[int, R]]:
    """What of ``groups``, which follow each other, belongs to the rows from ``start`` to ``stop``, each with its first row."""
    return _slices.get().cut(groups, start, stop)


@contextmanager
def going(slices: Slices) -> Iterator[None]:
    """Inside, in this thread, rows are gone through as ``slices`` says."""
    before = _slices.set(slices)
    try:
        yield
    finally:
        _slices.reset(before)
