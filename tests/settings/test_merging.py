"""Overrides mean what the command line says."""

from typing import Any

import pytest

from essa_dist.errors import UsageError
from essa_dist.settings import load


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1e-3", 0.001),
        ("optim.lr=2", 2.0),
        ("optim.clip=null", None),
        ("optim.betas=[0.5,0.75]", (0.5, 0.75)),
        ("adapter.rank=full", "full"),
        ("adapter.rank=4", 4),
        ("resume=true", True),
        ("note=a=b:c", "a=b:c"),
        ("note='quoted text'", "quoted text"),
        ('note=""', ""),
        ("note=null", None),
        ("head.width=3", 3),
    ],
)
def test_a_value_is_read_as_yaml(recipe: type[Any], override: str, value: object) -> None:
    found = load(recipe, {"out": "a"}, [override])
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    "text", ["2024_01", "1e-3", "2024-01-01", "1:20", "on", "a #b", "*.png", "[a", "${x"]
)
def test_a_text_stays_the_text_that_was_typed(recipe: type[Any], text: str) -> None:
    if "${" in text:
        with pytest.raises(UsageError):
            load(recipe, {"out": "a"}, [f"note={text}"])
    else:
        assert load(recipe, {"out": "a"}, [f"note={text}"]).note == text


def test_every_malformed_override_gets_its_line(recipe: type[Any]) -> None:
    with pytest.raises(UsageError) as caught:
        load(recipe, {}, ["foo", "=3", "optim..lr=1", "--steps=2", "optim.lr=", "optim.betas=[1", "steps=2"])
    assert str(caught.value).splitlines() == [
        "'foo' is not key=value; write for example foo=1",
        "'=3' has no proper key; write key=3",
        "'optim..lr=1' has no proper key; write optim.lr=1",
        "'--steps=2' has no proper key; write steps=2",
        "'optim.lr=' has no value; write optim.lr=null for none, optim.lr='\"\"' for an empty text",
        "'optim.betas=[1': the value is not YAML (did not find expected ',' or ']'); quote it",
    ]


def test_the_last_of_two_overrides_of_a_key_wins(recipe: type[Any]) -> None:
    assert load(recipe, {"out": "a"}, ["steps=2", "steps=3"]).steps == 3


def test_the_order_of_a_section_and_its_keys_does_not_matter(recipe: type[Any]) -> None:
    one = load(recipe, {"out": "a"}, ["adapter.rank=4", "adapter=lowrank"])
    other = load(recipe, {"out": "a"}, ["adapter=lowrank", "adapter.rank=4"])
    assert one == other
    assert (one.adapter.kind, one.adapter.rank) == ("lowrank", 4)


def test_a_list_replaces_and_a_mapping_merges(recipe: type[Any]) -> None:
    tree = {"out": "a", "optim": {"lr": 5, "betas": [0.1, 0.2]}, "weights": {"a": 1}}
    config = load(recipe, tree, ["optim={betas: [0.3, 0.4]}", "weights.b=2"])
    assert (config.optim.lr, config.optim.betas, config.weights) == (5.0, (0.3, 0.4), {"a": 1.0, "b": 2.0})
