"""What a tree of Configs allows: which keys there are, and what each of them takes, in words.

A key path is written as the user writes it: ``adapter.rank``, whichever member of a union ``adapter`` is. A union of
Configs is told apart by its members' literal field ``kind``.
"""

import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

KIND = "kind"
Model: TypeAlias = type[BaseModel]

_WORDS: dict[object, str] = {
    bool: "true | false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    type(None): "null",
    Any: "anything",
}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}


class Key(NamedTuple):
    path: str
    field: FieldInfo
    kinds: tuple[str, ...]
    """The kinds of the union members that have this key; empty outside a union."""


def atoms(annotation: object) -> Iterator[object]:
    """The types that a union or an annotated type consists of; containers are left whole."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from atoms(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from atoms(member)
    else:
        yield annotation


def members(annotation: object) -> list[Model]:
    """The Config classes that a value of this type can be: none for a plain value, several for a union."""
    return [atom for atom in atoms(annotation) if inspect.isclass(atom) and issubclass(atom, BaseModel)]


def held(annotation: object) -> list[Model]:
    """The Config classes that the values of a dict, or the entries of a list, of this type can be."""
    containers = [atom for atom in atoms(annotation) if get_origin(atom) is not None]
    return [model for atom in containers for entry in get_args(atom) for model in members(entry)]


def kinds(model: Model) -> tuple[str, ...]:
    """The values of ``kind`` that mean this member of a union."""
    field = model.model_fields.get(KIND)
    return get_args(field.annotation) if field is not None else ()


def keys(models: Sequence[Model], prefix: str = "") -> Iterator[Key]:
    """Every key path below ``models``, sections included, in order; a key of several members comes once each."""
    for model in models:
        for name, field in model.model_fields.items():
            yield Key(prefix + name, field, kinds(model) if len(models) > 1 else ())
            yield from keys(members(field.annotation), f"{prefix}{name}.")


def fields_at(models: Sequence[Model], path: Sequence[str]) -> list[FieldInfo]:
    """The fields that a key path means: none if there is no such key, several in a union of Configs."""
    here = [model.model_fields[path[0]] for model in models if path[0] in model.model_fields]
    if len(path) == 1:
        return here
    return [below for field in here for below in fields_at(members(field.annotation), path[1:])]


def describe(field: FieldInfo) -> str:
    """What a field takes, in a few words: ``integer >= 1 | full``."""
    return _describe(field.annotation, field.metadata)


def _describe(annotation: object, metadata: Sequence[object] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_alternative(member, metadata) for member in arguments))
    return f"{_word(annotation)} {_bounds(metadata)}".strip()


def _alternative(member: object, metadata: Sequence[object]) -> str:
    """A member of a union: a Config stands there by its kind, and the union's bounds by the numbers."""
    by_kind = " | ".join(word for model in members(member) for word in kinds(model))
    return by_kind or _describe(member, metadata if member in (int, float) else ())


def _word(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return "[" + ", ".join(map(_describe, arguments)) + "]"
    if _is_mapping(origin) and arguments:
        return "{" + ": ".join(map(_describe, arguments)) + "}"
    if origin is not None and arguments:
        return f"[{_describe(arguments[0])}, ...]"
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def takes_mapping(field: FieldInfo) -> bool:
    """Whether the field is a dict, whose keys are the user's own."""
    return any(_is_mapping(get_origin(atom) or atom) for atom in atoms(field.annotation))


def _is_mapping(origin: object) -> bool:
    return inspect.isclass(origin) and issubclass(origin, Mapping)


def _bounds(metadata: Sequence[object]) -> str:
    metadata = [
        part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])
    ]
    words = [
        f"{sign} {getattr(item, name)}"
        for item in metadata
        for name, sign in _BOUNDS.items()
        if getattr(item, name, None) is not None
    ]
    words += [
        f"with {word} {getattr(item, name)} entries"
        for item in metadata
        for name, word in _LENGTHS.items()
        if getattr(item, name, None) is not None
    ]
    return " and ".join(words)


def takes_text_only(field: FieldInfo) -> bool:
    """Whether every value of the field is text or a path (or null), so that YAML's reading of it can only harm."""
    return all(
        atom in (str, Path, type(None))
        or (get_origin(atom) is Literal and all(isinstance(choice, str) for choice in get_args(atom)))
        for atom in atoms(field.annotation)
    )


def choices(field: FieldInfo) -> list[str]:
    """The literal texts that a field takes; for a union of Configs, its kinds."""
    literals = [c for atom in atoms(field.annotation) if get_origin(atom) is Literal for c in get_args(atom)]
    return [str(c) for c in literals] + [kind for model in members(field.annotation) for kind in kinds(model)]
