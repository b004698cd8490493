"""Several things in one text: each place that takes a list takes it written with commas."""

from typing import Annotated, Any

import pytest
from pydantic import Field

from essa_dist.errors import UsageError
from essa_dist.settings import Config, load
from essa_dist.settings.words import OneOrMore, Several, Words


class Lists(Config):
    names: Several[str] = ()
    counts: OneOrMore[Annotated[int, Field(ge=1)]] = (1,)
    settings: Words = ()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("names=a", {"names": ("a",)}),
        ("names='a , b,'", {"names": ("a", "b")}),
        ("names=[a,b]", {"names": ("a", "b")}),
        ("names=''", {"names": ()}),
        ("counts=3", {"counts": (3,)}),
        ("counts=3,20", {"counts": (3, 20)}),
        ("settings='a=1,b.c=[2,3]'", {"settings": ("a=1", "b.c=[2,3]")}),
    ],
)
def test_a_text_is_read_as_the_list_it_stands_for(given: str, read: dict[str, Any]) -> None:
    assert load(Lists, None, [given]) == Lists(**read)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("counts=3,0", r"counts\[1\]: '0' is not allowed; allowed: \[integer >= 1, ...\]"),
        ("counts=''", r"counts: '' is not allowed.* with at least 1 entries"),
        ("names={a: 1}", "names: {a: 1} is not allowed"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(Lists, None, [given])
