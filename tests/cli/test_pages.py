"""Help that needs no other document."""

import pytest

from essa_dist.cli.pages import FLAGS, overview, verb_page
from essa_dist.settings.schema import keys
from essa_dist.verbs import VERBS, config_class


def test_the_overview_has_a_line_for_every_verb_and_flag() -> None:
    lines = overview().splitlines()
    for name, meaning in [*((name, verb.help) for name, verb in VERBS.items()), *FLAGS.items()]:
        assert any(line.split() == [*name.split(), *meaning.split()] for line in lines)


@pytest.mark.parametrize("name", VERBS)
def test_every_setting_of_a_verb_has_its_meaning_on_the_page(name: str) -> None:
    page = verb_page(name)
    assert f"usage: essa {name}" in page
    for key in keys([config_class(VERBS[name])]):
        assert key.field.description, f"{key.path} says nothing"
    for field in config_class(VERBS[name]).model_fields:
        assert f"\n{field}:" in page


def test_the_page_of_adapt_lists_the_recipes_with_their_headlines() -> None:
    page = verb_page("adapt")
    assert "\nRecipes:\n" in page
    assert "smoke.yaml" in page
