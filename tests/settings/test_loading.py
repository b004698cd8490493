"""One way to settings, from whatever they are given in."""

from pathlib import Path
from typing import Any

import pytest

from essa_dist.errors import UsageError
from essa_dist.settings import load


def test_a_file_python_values_and_overrides_lie_over_each_other_in_this_order(
    recipe: type[Any], tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("out: file\nsteps: 1\noptim: {lr: 0.1, clip: 1}\n")
    values = {"steps": 2, "optim": {"clip": None}, "weights": {"a": 1.5}}
    config = load(recipe, tmp_path / "a.yaml", ["steps=3"], values=values)
    assert (config.out, config.steps) == (Path("file"), 3)
    assert (config.optim.lr, config.optim.clip, config.weights) == (0.1, None, {"a": 1.5})


def test_a_config_can_be_the_source_and_stays_as_it_was(recipe: type[Any]) -> None:
    first = load(recipe, {"out": "a", "adapter": {"kind": "lowrank", "alpha": 2}})
    second = load(recipe, first, ["optim.lr=5"])
    assert second == first.model_copy(update={"optim": second.optim})
    assert (first.optim.lr, second.optim.lr) == (1e-3, 5.0)


def test_a_config_can_be_a_value(recipe: type[Any]) -> None:
    adapter = load(recipe, {"out": "a"}, ["adapter=lowrank"]).adapter
    assert load(recipe, {"out": "a"}, values={"adapter": adapter}).adapter == adapter


def test_a_key_of_the_default_kind_needs_no_kind(recipe: type[Any]) -> None:
    adapter = load(recipe, {"out": "a"}, ["adapter.rank=4"]).adapter
    assert (adapter.kind, adapter.rank) == ("rows", 4)


@pytest.mark.parametrize("override", ["adapter=lowrank", "adapter.kind=lowrank"])
@pytest.mark.parametrize("yaml", [{"kind": "rows", "rank": "full"}, {"rank": "full"}, "rows"])
def test_another_kind_leaves_the_keys_of_the_first_behind(
    recipe: type[Any], yaml: Any, override: str
) -> None:
    adapter = load(recipe, {"out": "a", "adapter": yaml}, ["adapter.alpha=2", override]).adapter
    assert (adapter.kind, adapter.rank, adapter.alpha) == ("lowrank", 8, 2.0)


def test_a_reference_follows_an_override(recipe: type[Any]) -> None:
    tree = {"out": "run_${steps}", "optim": {"lr": "${optim.clip}", "clip": 1.0}}
    config = load(recipe, tree, ["optim.clip=0.5", "steps=7"])
    assert (config.out, config.optim.lr) == (Path("run_7"), 0.5)


def test_the_environment_is_not_let_in(recipe: type[Any]) -> None:
    with pytest.raises(UsageError, match=r"optim.lr: .* uses the resolver oc.env"):
        load(recipe, {"out": "a", "optim": {"lr": "${oc.env:HOME}"}})


def test_a_reference_to_nothing_names_both_keys(recipe: type[Any]) -> None:
    with pytest.raises(UsageError, match=r"^note: .*'optim.lr' not found"):
        load(recipe, {"out": "a", "note": "${optim.lr}"})


def test_question_marks_mean_not_given(recipe: type[Any]) -> None:
    with pytest.raises(UsageError, match=r"^out: needed and not given; allowed: path$"):
        load(recipe, {"out": "???"})


def test_a_partial_recipe_can_be_looked_at_but_only_what_is_missing_is_forgiven(recipe: type[Any]) -> None:
    assert load(recipe, {"steps": 3}, partial=True).out == Path("???")
    with pytest.raises(UsageError, match="steps: 0 is not allowed"):
        load(recipe, {"steps": 0}, partial=True)


def test_a_source_of_another_type_is_refused(recipe: type[Any]) -> None:
    with pytest.raises(UsageError, match="can't be read from 3; give a YAML file, a mapping or a Recipe"):
        load(recipe, 3)  # type: ignore[arg-type]
