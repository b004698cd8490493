"""Rows in slices: all of them once and in order, unless somebody goes through them otherwise."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from essa_dist.losses.slices import Slices, cut, going, spans


class Group(NamedTuple):
    rows: range

    def size(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> "Group":
        return Group(self.rows[start:stop])


@pytest.mark.parametrize(("size", "step"), [(0, 3), (2, 3), (6, 3), (7, 3)])
def test_spans_cover_every_row_once(size: int, step: int) -> None:
    found = list(spans(size, step))
    assert [row for start, stop in found for row in range(start, stop)] == list(range(size))
    assert all(0 < stop - start <= step for start, stop in found)


def test_a_slice_over_several_groups_is_cut_at_their_borders() -> None:
    groups = [Group(range(10, 14)), Group(range(0)), Group(range(20, 25))]
    assert [(at, list(part.rows)) for at, part in cut(groups, 2, 7)] == [(2, [12, 13]), (4, [20, 21, 22])]
    assert [at for at, _ in cut(groups, 0, 2)] == [0]


def test_another_way_of_going_holds_inside_alone() -> None:
    class First(Slices):
        def spans(self, size: int, step: int) -> Iterator[tuple[int, int]]:
            yield 0, step

    with going(First()):
        assert list(spans(9, 4)) == [(0, 4)]
    assert len(list(spans(9, 4))) == 3
