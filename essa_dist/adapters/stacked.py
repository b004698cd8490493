"""Settings of adapters on top of each other: what is in a model that was trained in several steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from essa_dist.adapters import ADAPTERS, AdapterConfig, build_adapter
from essa_dist.backbones.vit import Backbone

Settings = Mapping[str, Any]


def parts_of(settings: Settings | None) -> list[dict[str, Any]]:
    """One by one, the lowest first."""
    if settings is None:
        return []
    return [dict(part) for part in settings.get("parts", [settings])]


def joined(parts: Sequence[Settings]) -> dict[str, Any] | None:
    """The inverse of :func:`parts_of`."""
    if len(parts) > 1:
        return {"kind": "combined", "parts": [dict(part) for part in parts]}
    return dict(parts[0]) if parts else None


def trained_on(below: Settings | None, above: Settings) -> list[str]:
    """Kinds in ``above`` that train on the modules which ``below`` left in the model, as those can't be merged."""
    left = {part["kind"] for part in parts_of(below)}
    return [part["kind"] for part in parts_of(above) if part["kind"] in left and not _merges(part["kind"])]


def stacked(below: Settings | None, above: Settings) -> dict[str, Any] | None:
    """What is in a model when ``above`` was put on top of ``below``."""
    again = trained_on(below, above)
    return joined([*parts_of(below), *(part for part in parts_of(above) if part["kind"] not in again)])


def merge_all(backbone: Backbone, settings: Settings | None) -> None:
    """Merge what can be, of ``settings`` that are in ``backbone``, the topmost first; the others stay and are noted in it."""
    staying: list[dict[str, Any]] = []
    for part in reversed(parts_of(settings)):
        adapter = build_adapter(TypeAdapter(AdapterConfig).validate_python(part))
        adapter.merge(backbone)
        if not adapter.merges:
            staying.insert(0, part)
    backbone.adapter_settings = joined(staying)


def _merges(kind: str) -> bool:
    return kind not in ADAPTERS or ADAPTERS[kind][1].merges
