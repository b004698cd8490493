"""What a field takes, in words."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, create_model

from essa_dist.settings.schema import describe, fields_at, keys


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "integer"),
        (bool, "true | false"),
        (Path | None, "path | null"),
        (Literal["a", 1], "a | 1"),
        (Annotated[float, Field(gt=0, le=1)], "number > 0 and <= 1"),
        (Literal["full"] | Annotated[int, Field(ge=1)], "full | integer >= 1"),
        (tuple[float, float], "[number, number]"),
        (tuple[str, ...], "[text, ...]"),
        (Annotated[int | None, Field(gt=0)], "integer > 0 | null"),
        (list[int] | None, "[integer, ...] | null"),
        (Annotated[list[str], Field(min_length=2)], "[text, ...] with at least 2 entries"),
        (dict[str, float], "{text: number}"),
        (Colour, "red | blue"),
        (Any, "anything"),
    ],
)
def test_a_type_is_described(annotation: Any, words: str) -> None:
    model = create_model("Model", field=(annotation, ...))
    assert describe(model.model_fields["field"]) == words


def test_every_key_path_is_listed_once_for_each_member_that_has_it(recipe: type[Any]) -> None:
    found = [(key.path, key.kinds) for key in keys([recipe]) if key.path.startswith("adapter")]
    assert found == [
        ("adapter", ()),
        ("adapter.kind", ("rows",)),
        ("adapter.rank", ("rows",)),
        ("adapter.kind", ("lowrank",)),
        ("adapter.rank", ("lowrank",)),
        ("adapter.alpha", ("lowrank",)),
    ]


def test_a_path_leads_to_the_fields_of_all_members(recipe: type[Any]) -> None:
    assert len(fields_at([recipe], ["adapter", "rank"])) == 2
    assert len(fields_at([recipe], ["adapter", "alpha"])) == 1
    assert fields_at([recipe], ["adapter", "nothing"]) == []
    assert fields_at([recipe], ["steps", "below"]) == []
