"""The verbs as Python calls: the same settings and the same result as the command's."""

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

import essa_dist
from essa_dist import verbs
from essa_dist.errors import UsageError
from essa_dist.settings import Config
from essa_dist.verbs import VERBS, Verb, sort_words

PUBLIC = ["adapt", "embed", "evaluate", "export", "finetune", "pack", "predict", "report"]


class FakeConfig(Config):
    protocol: Literal["knn", "linear"] = "knn"
    """How."""
    model: str = "none"
    """Which."""
    size: int = 1
    """How large."""


def fake(config: FakeConfig) -> dict[str, Any]:
    return config.model_dump()


@pytest.fixture
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb lives here."""
    module = ModuleType("fakeverbs")
    module.fake, module.FakeConfig = fake, FakeConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fakeverbs", module)
    for name, verb in list(VERBS.items()):
        replaced = verb._replace(module="fakeverbs", function="fake", config="fakeverbs:FakeConfig")
        monkeypatch.setitem(VERBS, name, replaced)


@pytest.mark.usefixtures("_fakes")
@pytest.mark.parametrize("name", PUBLIC)
def test_every_verb_takes_a_file_overrides_and_keywords(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: file\nsize: 2\n")
    call = getattr(verbs, name)
    assert call(tmp_path / "a.yaml", "size=3", protocol="linear") == {
        "protocol": "linear",
        "model": "file",
        "size": 3,
    }
    assert call(str(tmp_path / "a.yaml"), model="here") == {"protocol": "knn", "model": "here", "size": 2}
    assert call({"model": "mapping"}, "size=3") == {"protocol": "knn", "model": "mapping", "size": 3}
    assert call(FakeConfig(model="object"), "size=3") == {"protocol": "knn", "model": "object", "size": 3}
    assert call() == FakeConfig().model_dump()
    with pytest.raises(UsageError, match="siz: unknown key"):
        call(siz=3)


@pytest.mark.usefixtures("_fakes")
def test_a_text_that_is_no_file_is_what_the_verb_is_about() -> None:
    assert verbs.evaluate("linear", model="m")["protocol"] == "linear"
    assert verbs.evaluate("model=m", "size=3") == {"protocol": "knn", "model": "m", "size": 3}
    with pytest.raises(UsageError) as caught:
        verbs.evaluate("kn")
    assert str(caught.value) == "protocol: 'kn' is not allowed; allowed: knn | linear; did you mean knn?"


def test_words_are_sorted_into_file_value_and_overrides(tmp_path: Path) -> None:
    verb = Verb("", "", "", "", positional="src")
    with_equals = tmp_path / "lr=1.yaml"
    assert sort_words(verb, ["a=1", "IMAGES", "x.yaml", "b=2"]) == (
        Path("x.yaml"),
        {"src": "IMAGES"},
        ["a=1", "b=2"],
    )
    assert sort_words(verb, [str(with_equals)]) == (None, {}, [str(with_equals)])
    with_equals.touch()
    assert sort_words(verb, [str(with_equals)]) == (with_equals, {}, [])
    with pytest.raises(UsageError, match="'b' is one word too many"):
        sort_words(verb, ["a", "b"])
    with pytest.raises(UsageError, match=r"'b.yaml' is one word too many"):
        sort_words(verb, ["a.yaml", "b.yaml"])


def test_a_setting_may_be_longer_than_any_file_is_named() -> None:
    variants = "variants=" + "|".join(["engine.fast=false"] * 30)
    assert sort_words(VERBS["bench compare"], [variants])[2] == [variants]
    assert sort_words(Verb("", "", "", ""), [f"{variants}.yaml"])[2] == [f"{variants}.yaml"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_verb_is_documented_with_its_call(name: str) -> None:
    assert f"{name}(" in (inspect.getdoc(getattr(verbs, name)) or "")


@pytest.mark.parametrize("name", verbs.CALLABLE_MODULES)
def test_a_verb_stays_callable_beside_the_package_of_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = importlib.import_module(f"essa_dist.{name}")
    assert getattr(essa_dist, name) is package
    monkeypatch.setattr(verbs, "call", lambda *given: given)
    assert package("run.yaml", "a=1", b=2) == (name, "run.yaml", ("a=1",), {"b": 2})


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_where_the_table_says(name: str) -> None:
    verb = VERBS[name]
    assert callable(getattr(importlib.import_module(verb.module), verb.function))
    assert issubclass(verbs.config_class(verb), Config)
    if verb.positional:
        assert verb.positional in verbs.config_class(verb).model_fields
