"""A Config written as YAML: plain for a run's record, or with the documentation of every field above it."""

import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from essa_dist.settings.base import Config
from essa_dist.settings.merging import MISSING
from essa_dist.settings.schema import describe, members

_WIDTH = 110
_INDENT = "  "
_GLUE = "\0"  # stands for a space where a line must not break


def to_yaml(config: Config) -> str:
    """Every setting as YAML, without comments; ``load`` reads the same Config from it."""
    return yaml.dump(as_tree(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def render(config: Config | type[Config], *, commented: bool = True) -> str:
    """Every setting as YAML, each below a comment with its meaning and what it takes.

    A class stands for its defaults, with ``???`` at a key that has to be given. ``load`` reads the same Config from the
    text of a Config.
    """
    if isinstance(config, Config) and not commented:
        return to_yaml(config)
    model, instance = (config, None) if isinstance(config, type) else (type(config), config)
    return "".join(f"{line}\n" for line in _lines(model, instance, "", commented))


def _lines(model: type[BaseModel], config: BaseModel | None, indent: str, commented: bool) -> Iterator[str]:
    for name, field in model.model_fields.items():
        value = _default(field) if config is None else getattr(config, name)
        section = _section(field, value)
        if commented:
            yield from _comment(field, section is not None, indent)
        if section is None:
            yield f"{indent}{name}: {_scalar(value)}"
        else:
            yield f"{indent}{name}:"
            yield from _lines(
                section, value if isinstance(value, BaseModel) else None, indent + _INDENT, commented
            )


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    return MISSING if value is PydanticUndefined else value


def _section(field: FieldInfo, value: object) -> type[BaseModel] | None:
    """The Config whose keys stand below this one: that of the value, or the one it could only be."""
    if isinstance(value, BaseModel):
        return type(value) if type(value).model_fields else None
    models = members(field.annotation)
    return models[0] if value == MISSING and len(models) == 1 else None


def _comment(field: FieldInfo, is_section: bool, indent: str) -> Iterator[str]:
    words = " ".join((field.description or "").split())
    is_one_section = is_section and len(members(field.annotation)) == 1
    is_constant = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    if not is_one_section and not is_constant:
        takes = describe(field).replace(" ", _GLUE)
        words = f"{words} [{takes}]".strip()
    margin = f"{indent}# "
    lines = textwrap.wrap(
        words, _WIDTH, initial_indent=margin, subsequent_indent=margin, break_long_words=False
    )
    yield from (line.replace(_GLUE, " ") for line in lines)


def _scalar(value: object) -> str:
    text = yaml.dump(_known(value), Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def as_tree(config: Config) -> dict[str, Any]:
    """Every setting in the types that YAML and JSON know."""
    return dict(_known(config))


def _known(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _known(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {_known(key): _known(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_known(item) for item in value]
    if isinstance(value, Enum):
        return _known(value.value)
    if isinstance(value, PurePath):
        return _known(str(value))
    return value


class _Dumper(yaml.SafeDumper):
    """YAML that the reader of settings reads back: it takes ``1e-3`` for a number, so such a text is quoted."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    value = value.replace("${", "\\${")  # not a reference to another key
    style = '"' if "\n" in value else "'" if _looks_like_number(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _looks_like_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_Dumper.add_representer(str, _text)
