"""Trees of settings laid over each other: a base file, a file, Python values, ``key=value`` overrides."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from essa_dist.errors import UsageError
from essa_dist.settings.schema import KIND, Model, fields_at, members, takes_text_only

MISSING = "???"  # OmegaConf's mark of a value that has to be given
_RESOLVER = re.compile(r"(?<!\\)\$\{\s*([\w.]+)\s*:")
_QUOTED = re.compile(r"'.*'|\".*\"", re.DOTALL)


def merge(models: Sequence[Model], base: object, over: object) -> Any:
    """``over`` laid on ``base``: mappings are merged, anything else replaces.

    Where ``models`` is a union of Configs, a mapping of another ``kind`` replaces too, since the keys of one kind mean
    nothing to another; a plain text there stands for ``{kind: text}``.
    """
    if isinstance(base, str) and len(models) > 1:
        base = {KIND: base}
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if len(models) > 1 and KIND in base and over.get(KIND, base[KIND]) != base[KIND]:
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        below = [m for field in fields_at(models, [str(key)]) for m in members(field.annotation)]
        merged[key] = merge(below, base[key], value) if key in base else value
    return merged


def apply_overrides(model: Model, tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``a.b=value`` texts laid on ``tree``, outer keys first: ``adapter.rank=4 adapter=lora`` keeps the rank.

    Raises UsageError with a line for each override that is not of this form.
    """
    parsed, problems = [], []
    for override in overrides:
        try:
            parsed.append(_parse(model, override))
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    for path, value in sorted(parsed, key=lambda pair: (len(pair[0]), pair[0][-1] != KIND)):
        for key in reversed(path):
            value = {key: value}
        tree = merge([model], tree, value)
    return dict(tree)


def _parse(model: Model, override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    path = key.split(".")
    if not equals:
        raise UsageError(f"{override!r} is not key=value; write for example {key.strip('- ') or 'key'}=1")
    if not all(re.fullmatch(r"[^\s\-][^\s]*", part) for part in path):
        raise UsageError(f"{override!r} has no proper key; write {_mended(path)}={text or 'value'}")
    if not text.strip():
        raise UsageError(
            f"{override!r} has no value; write {key}=null for none, {key}='\"\"' for an empty text"
        )
    return path, _value(model, path, override, text)


def _mended(path: Sequence[str]) -> str:
    return ".".join(part.strip("- ") for part in path if part.strip("- ")) or "key"


def _value(model: Model, path: list[str], override: str, text: str) -> Any:
    fields = fields_at([model], path)
    verbatim = fields and all(takes_text_only(field) for field in fields)
    if verbatim and text not in ("null", "~") and not _QUOTED.fullmatch(text):
        return text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[call-overload,index]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UsageError(f"{override!r}: the value is not YAML ({problem}); quote it") from None


def resolve(tree: dict[str, Any]) -> dict[str, Any]:
    """``${other.key}`` replaced by the value of that key; ``???`` (not given) left out.

    Nothing from outside the tree is let in, so that a run means the same in every shell: a resolver such as
    ``${oc.env:HOME}`` raises UsageError.
    """
    texts = list(_texts(tree))
    for path, text in texts:
        if resolver := _RESOLVER.search(text):
            raise UsageError(
                f"{path}: {text!r} uses the resolver {resolver[1]}; only ${{other.key}} is allowed"
            )
    if any("${" in text for _, text in texts):
        try:
            tree = OmegaConf.to_container(OmegaConf.create(tree, flags={"allow_objects": True}), resolve=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            where, problem = error.full_key or "settings", str(error).splitlines()[0]
            raise UsageError(
                f"{where}: {problem}; ${{...}} can only name a key that is given here too"
            ) from None
    return dict(_without_missing(tree))


def _texts(tree: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield prefix.rstrip("."), tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _texts(value, f"{prefix}{key}.")
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _texts(value, prefix)


def _without_missing(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return {key: _without_missing(value) for key, value in tree.items() if value != MISSING}
