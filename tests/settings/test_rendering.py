"""Settings written out are read back, and every one of them says what it means."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from essa_dist.settings import Config, as_tree, load, render, to_yaml

TEXTS = [
    "plain",
    "1e-3",
    "12",
    "null",
    "on",
    "1:20",
    "a: b",
    "# no",
    "two\nlines",
    " ",
    "",
    "$x",
    "cost ${x}",
    "ä",
    "'",
]


class Texts(Config):
    texts: tuple[str, ...] = ()
    """Any."""
    one: str = ""
    """Some."""
    scores: dict[str, float] = Field(default_factory=dict)
    """By name."""


@pytest.mark.parametrize("write", [render, to_yaml])
def test_the_written_settings_are_the_same_settings(recipe: type[Any], write: Any, tmp_path: Path) -> None:
    overrides = ["adapter=lowrank", "optim.lr=1e-12", "optim.clip=null", "head.width=3", "weights.a=.inf"]
    config = load(recipe, {"out": tmp_path}, overrides)
    (tmp_path / "a.yaml").write_text(write(config))
    assert load(recipe, tmp_path / "a.yaml") == config


@pytest.mark.parametrize("write", [render, to_yaml])
@pytest.mark.parametrize("text", TEXTS)
def test_no_text_changes_on_the_way(text: str, write: Any, tmp_path: Path) -> None:
    config = Texts(texts=(text, text), one=text, scores={"a b": 1.0})
    (tmp_path / "a.yaml").write_text(write(config), encoding="utf-8")
    assert load(Texts, tmp_path / "a.yaml") == config


def test_each_setting_stands_below_its_meaning_and_what_it_takes(recipe: type[Any]) -> None:
    lines = render(recipe).splitlines()
    for key, comment in {
        "steps: 100": "# How long. [integer >= 1 and <= 1000]",
        "adapter:": "# What is trained. [rows | lowrank]",
        "  rank: full": "  # How many. [full | integer >= 1]",
        "optim:": "# The optimizer.",
        "  lr: 0.001": "  # Learning rate. [number > 0]",
    }.items():
        assert lines[lines.index(key) - 1] == comment


def test_what_has_to_be_given_is_marked_in_the_defaults_of_a_class(recipe: type[Any]) -> None:
    assert yaml.safe_load(render(recipe))["out"] == "???"


def test_without_comments_it_is_plain_yaml(recipe: type[Any]) -> None:
    config = load(recipe, {"out": "a"})
    assert "#" not in render(config, commented=False)
    assert yaml.safe_load(render(config, commented=False)) == as_tree(config)
