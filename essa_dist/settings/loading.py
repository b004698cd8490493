"""From a YAML file, a mapping or a Config, values and overrides to one validated Config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from essa_dist.errors import UsageError
from essa_dist.settings.base import Config
from essa_dist.settings.files import read_tree
from essa_dist.settings.merging import MISSING, apply_overrides, merge, resolve
from essa_dist.settings.problems import explain
from essa_dist.settings.schema import KIND, members

C = TypeVar("C", bound=Config)
Source = str | Path | Mapping[str, Any] | Config | None


def load(
    model: type[C],
    source: Source = None,
    overrides: Sequence[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> C:
    """The settings of ``source``, with ``values`` and then ``overrides`` (``a.b=value``) laid over them.

    A str or Path source is a YAML file. ``values`` are Python objects by key, taken as they are. With ``partial`` a key
    that is needed and not given gets the text ``???``, if it takes a text: to look at a recipe, not to run it.
    Raises UsageError with one line for each thing that is wrong.
    """
    tree = _with_default_kinds(model, _tree(model, source))
    tree = _with_default_kinds(model, merge([model], tree, _plain(values or {})))
    tree = resolve(_with_default_kinds(model, apply_overrides(model, tree, overrides)))
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        if partial and (rest := _filled(model, tree, error)) is not None:
            return rest
        raise UsageError(explain(model, error)) from None


def _tree(model: type[Config], source: Source) -> dict[str, Any]:
    if source is None:
        return {}
    if isinstance(source, (str, Path)):
        return read_tree(model, Path(source))
    if isinstance(source, (Mapping, Config)):
        return dict(_plain(source))
    raise UsageError(
        f"settings can't be read from {source!r}; give a YAML file, a mapping or a {model.__name__}"
    )


def _plain(value: Any) -> Any:
    """Configs inside ``value`` as mappings, so that everything merges alike."""
    if isinstance(value, BaseModel):
        return _plain({name: getattr(value, name) for name in type(value).model_fields})
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _with_default_kinds(model: type[BaseModel], tree: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with the field's own default ``kind`` where a union's mapping names none."""
    filled = dict(tree)
    for name, field in model.model_fields.items():
        value, models = filled.get(name), members(field.annotation)
        if not isinstance(value, Mapping):
            continue
        if len(models) == 1:
            filled[name] = _with_default_kinds(models[0], value)
        elif len(models) > 1 and KIND not in value:
            default = _plain(field.get_default(call_default_factory=True))
            kind = default.get(KIND) if isinstance(default, Mapping) else default
            filled[name] = {KIND: kind, **value} if isinstance(kind, str) else value
    return filled


def _filled(model: type[C], tree: Mapping[str, Any], error: ValidationError) -> C | None:
    problems = error.errors(include_url=False)
    if any(problem["type"] != "missing" for problem in problems):
        return None
    completed: Any = tree
    for problem in problems:
        value: Any = MISSING
        for part in reversed(problem["loc"]):
            value = {part: value}
        completed = merge([model], completed, value)
    try:
        return model.model_validate(completed)
    except ValidationError:
        return None
