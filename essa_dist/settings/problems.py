"""Pydantic's errors as lines for the user: the key, the value given, what is allowed, the nearest valid key."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from essa_dist.nearest import nearest
from essa_dist.settings.schema import (
    KIND,
    Key,
    Model,
    choices,
    describe,
    held,
    keys,
    kinds,
    members,
    takes_mapping,
)

_LONGEST = 60  # characters of a value that are shown
_BOUNDS = (
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "multiple_of",
    "too_short",
    "too_long",
)


class _Place(NamedTuple):
    """Where an error is: the path as the user writes it, and what the settings know about that place."""

    path: str
    models: list[Model]  # the Configs that could stand here
    siblings: list[Model]  # the Configs that hold the last key
    fields: list[FieldInfo]


def explain(model: Model, error: ValidationError) -> str:
    """One line for each key that is wrong, whatever number of errors pydantic has for it."""
    lines: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        place = _locate(model, detail["loc"], ends_unknown=detail["type"] == "extra_forbidden")
        lines.setdefault(place.path or detail["msg"], _line(model, place, detail))
    # What is wrong inside a value says more than that the value is not one of the plain ones.
    return "\n".join(line for path, line in lines.items() if not _holds_another(path, lines))


def _holds_another(path: str, paths: Iterable[str]) -> bool:
    return any(other.startswith((f"{path}.", f"{path}[")) for other in paths)


def _locate(model: Model, location: Sequence[int | str], *, ends_unknown: bool) -> _Place:
    """Pydantic's location without what it adds: the tags of unions and the names of its own validators."""
    path, models, siblings = "", [model], [model]
    fields: list[FieldInfo] = []
    for position, part in enumerate(location):
        here = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        is_unknown = ends_unknown and position == len(location) - 1
        if is_unknown:
            path, siblings, fields, models = f"{path}.{part}", models, [], []
        elif len(models) > 1:  # the first part after a union is the tag of its member
            models = [m for m in models if part in kinds(m) or part == m.__name__] or models
        elif here:
            path, siblings, fields = f"{path}.{part}", models, here
            models = [m for field in here for m in members(field.annotation)]
        elif isinstance(part, int):
            path, models = f"{path}[{part}]", [m for field in fields for m in held(field.annotation)]
        elif any(takes_mapping(field) for field in fields):
            path, models = f"{path}.{part}", [m for field in fields for m in held(field.annotation)]
    return _Place(path.lstrip("."), models, siblings, fields)


def _line(model: Model, place: _Place, detail: ErrorDetails) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return _unknown(model, place, detail["input"])
        case "missing":
            return f"{place.path}: needed and not given; allowed: {_allowed(place)}"
        case "union_tag_invalid" | "union_tag_not_found":
            return _wrong_kind(place, detail)
        case "value_error" | "assertion_error":
            return _own_words(place, detail)
        case _:
            return _wrong_value(place, detail)


def _unknown(model: Model, place: _Place, given: Any) -> str:
    known = list(keys([model]))
    others = [kind for key in known if key.path == place.path for kind in key.kinds]
    if others:
        section, _, name = place.path.rpartition(".")
        mine = ", ".join(kinds(place.siblings[0]))
        return f"{place.path}: {name} belongs to {section}.{KIND}={'|'.join(others)}, not to {mine}; {_here(place)}"
    path = place.path
    while isinstance(given, Mapping) and len(given) == 1:  # down to the one key that was meant
        ((name, given),) = given.items()
        path = f"{path}.{name}"
    best = _nearest_key(known, path) or _nearest_sibling(place, path)
    hint = f"did you mean {best.path} ({describe(best.field)})?" if best else _here(place)
    return f"{path}: unknown key (given {shown(given)}); {hint}"


def _nearest_key(known: list[Key], path: str) -> Key | None:
    best = nearest(path, [key.path for key in known])
    return next((key for key in known if key.path == best), None)


def _nearest_sibling(place: _Place, path: str) -> Key | None:
    """Of those beside a key below names of the user's own, or in a list, which no key path foresees."""
    section, _, name = path.rpartition(".")
    fields = {name: field for model in place.siblings for name, field in model.model_fields.items()}
    best = nearest(name, list(fields)) if path.startswith(place.path) and path.count(".") else None
    return Key(f"{section}.{best}", fields[best], ()) if best else None


def _here(place: _Place) -> str:
    names = dict.fromkeys(name for model in place.siblings for name in model.model_fields)
    return f"keys here: {', '.join(names)}"


def _allowed(place: _Place) -> str:
    return " | ".join(dict.fromkeys(describe(field) for field in place.fields)) or "another value"


def _wrong_kind(place: _Place, detail: ErrorDetails) -> str:
    allowed = [kind for model in place.models for kind in kinds(model)]
    given = detail["input"]
    tag = given.get(KIND) if isinstance(given, Mapping) else given
    words = f"allowed: {' | '.join(allowed)}{_did_you_mean(tag, allowed)}"
    if tag is None:
        return f"{place.path}.{KIND}: needed and not given; {words}"
    return f"{place.path}.{KIND}: {shown(tag)} is not allowed; {words}"


def _own_words(place: _Place, detail: ErrorDetails) -> str:
    """A validator of the project has its own message, written for the user."""
    words = " ".join(str(detail.get("ctx", {}).get("error") or detail["msg"]).split())
    if not place.path or place.path in words:
        return words
    given = shown(detail["input"])
    if isinstance(detail["input"], Mapping) or given in words:
        return f"{place.path}: {words}"
    return f"{place.path}: {given} is not allowed; {words}"


def _wrong_value(place: _Place, detail: ErrorDetails) -> str:
    given, kind = detail["input"], detail["type"]
    plain = kind.endswith(("_type", "_parsing", "_from_float")) or kind in (*_BOUNDS, "literal_error", "enum")
    reason = "" if plain else f" ({detail['msg'][0].lower()}{detail['msg'][1:]})"
    hint = _did_you_mean(given, [choice for field in place.fields for choice in choices(field)])
    if kind == "string_type" and isinstance(given, (int, float)):
        hint = f"; for a text quote it: '{given}'"
    return f"{place.path}: {shown(given)} is not allowed{reason}; allowed: {_allowed(place)}{hint}"


def _did_you_mean(given: object, allowed: Sequence[str]) -> str:
    best = nearest(given, allowed) if isinstance(given, str) else None
    return f"; did you mean {best}?" if best else ""


def shown(value: object) -> str:
    """A value as YAML would have it, on one line and not too long."""
    if isinstance(value, BaseModel):
        value = dict(value)
    try:
        text = yaml.safe_dump(
            value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True
        )
        text = " ".join(text.removesuffix("...\n").split())
    except yaml.YAMLError:
        text = " ".join(repr(value).split())
    text = f"'{text}'" if isinstance(value, str) and not text.startswith(("'", '"')) else text
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
