"""A wrong setting is one line: the key as the user writes it, the value, what is allowed, the nearest key."""

from typing import Any

import pytest
from pydantic import Field

from essa_dist.errors import UsageError
from essa_dist.settings import Config, load


def lines(recipe: type[Any], *overrides: str, **values: object) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(recipe, {"out": "a", **values}, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("steps=abc", "steps: 'abc' is not allowed; allowed: integer >= 1 and <= 1000"),
        ("steps=1.5", "steps: 1.5 is not allowed; allowed: integer >= 1 and <= 1000"),
        ("steps=0", "steps: 0 is not allowed; allowed: integer >= 1 and <= 1000"),
        ("optim.lr=-1", "optim.lr: -1 is not allowed; allowed: number > 0"),
        ("optim.clip=much", "optim.clip: 'much' is not allowed; allowed: number | null"),
        ("optim.betas=[1,x]", "optim.betas[1]: 'x' is not allowed; allowed: [number, number]"),
        ("resume=maybe", "resume: 'maybe' is not allowed; allowed: true | false"),
        ("precision=fp23", "precision: 'fp23' is not allowed; allowed: fp32 | bf16; did you mean fp32?"),
        ("weights.a=b", "weights.a: 'b' is not allowed; allowed: {text: number}"),
        ("optim=3", "optim: 3 is not allowed; allowed: {lr, betas, clip}"),
        ("head=3", "head: 3 is not allowed; allowed: shared | {width}"),
        ("head.width=0", "head.width: 0 is not allowed; allowed: integer >= 1"),
        ("adapter.rank=0", "adapter.rank: 0 is not allowed; allowed: full | integer >= 1"),
        ("adapter=3", "adapter: 3 is not allowed; allowed: rows | lowrank"),
        (
            "adapter=lowrnk",
            "adapter.kind: 'lowrnk' is not allowed; allowed: rows | lowrank; did you mean lowrank?",
        ),
        ("optim.lrr=3", "optim.lrr: unknown key (given 3); did you mean optim.lr (number > 0)?"),
        ("lr=3", "lr: unknown key (given 3); did you mean optim.lr (number > 0)?"),
        ("optm.lr=3", "optm.lr: unknown key (given 3); did you mean optim.lr (number > 0)?"),
        (
            "adapter.rnk=3",
            "adapter.rnk: unknown key (given 3); did you mean adapter.rank (full | integer >= 1)?",
        ),
        (
            "adapter.alpha=3",
            "adapter.alpha: alpha belongs to adapter.kind=lowrank, not to rows; keys here: kind, rank",
        ),
        ("optim.zzz=3", "optim.zzz: unknown key (given 3); keys here: lr, betas, clip"),
        ("steps=13", "steps=13 can't be: take 14"),
    ],
)
def test_one_problem_is_this_line(recipe: type[Any], override: str, line: str) -> None:
    assert lines(recipe, override) == [line]


def test_a_number_where_a_text_belongs_is_told_to_be_quoted(recipe: type[Any]) -> None:
    assert lines(recipe, note=12) == [
        "note: 12 is not allowed; allowed: text | null; for a text quote it: '12'"
    ]


def test_all_problems_are_told_at_once(recipe: type[Any]) -> None:
    found = lines(recipe, "steps=0", "optim.lr=-1", "adapter.rnk=2", "zzz=3", "out=null")
    assert [line.partition(":")[0] for line in found] == ["out", "steps", "adapter.rnk", "optim.lr", "zzz"]


def test_the_member_of_a_union_that_was_chosen_is_the_one_described(recipe: type[Any]) -> None:
    assert lines(recipe, "adapter=lowrank", "adapter.rank=full") == [
        "adapter.rank: 'full' is not allowed; allowed: integer >= 1"
    ]


def test_a_long_value_is_cut_and_stays_on_one_line(recipe: type[Any]) -> None:
    (line,) = lines(recipe, steps="x\n" * 100)
    assert len(line) < 140


class Part(Config):
    width: int = 1
    """Its width."""


class Whole(Config):
    parts: dict[str, Part] = Field(default_factory=dict)
    """By names of the user's own."""
    row: tuple[Part, ...] = ()
    """One after the other."""


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"parts": {"mine": {"wdth": 3}}},
            "parts.mine.wdth: unknown key (given 3); did you mean parts.mine.width (integer)?",
        ),
        ({"parts": {"mine": {"zzz": 3}}}, "parts.mine.zzz: unknown key (given 3); keys here: width"),
        ({"parts": {"mine": {"width": "x"}}}, "parts.mine.width: 'x' is not allowed; allowed: integer"),
        ({"row": [{"zzz": 3}]}, "row[0].zzz: unknown key (given 3); keys here: width"),
    ],
)
def test_keys_below_names_of_the_users_own_are_known_too(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(Whole, values)
    assert str(caught.value) == line
