"""A verb's result, a dict, as one JSON object or as lines for a reader."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from essa_dist.cli.evaluation import evaluation, suite

_NAME_SHOWN = 48  # a longer name, as a reason is, doesn't widen the column
_LIST_SHOWN = 8  # a longer list is named by its length only; the JSON has it whole


def to_json(result: Mapping[str, Any]) -> str:
    """One line. NaN and infinity are not JSON and become null; paths are texts, arrays and tensors lists."""
    return json.dumps(_jsonable(result), allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):  # numpy and torch
        return _jsonable(value.tolist())
    return str(value)


def to_text(verb: str, result: Mapping[str, Any]) -> str:
    """What the command prints: a sentence for an evaluation, the demo's table, for the rest keys and values in aligned columns."""
    if verb == "evaluate" and "rows" in result:
        from essa_dist.cli.side_by_side import side_by_side

        return side_by_side(result)
    if verb == "evaluate":
        return evaluation(result)
    if verb == "evaluate suite":
        return suite(result)
    if verb.startswith("bench "):
        return "".join(f"{line}\n" for line in result["table"])
    if verb == "doctor" and "ranks" in result:
        from essa_dist.doctor.world.page import world_page

        return world_page(result)
    if verb == "finetune":
        from essa_dist.cli.finetuned import finetuned

        return finetuned(result)
    if verb == "plan":
        from essa_dist.cli.planned import planned

        return planned(result)
    if verb == "reproduce":
        from essa_dist.cli.reproduced import reproduced

        return reproduced(result)
    if verb == "scale":
        from essa_dist.cli.scaled import scaled

        return scaled(result)
    if verb == "tune":
        from essa_dist.cli.tuned import tuned

        return tuned(result)
    if verb == "demo":
        from essa_dist.cli.before_after import before_after  # rich takes 50 ms that other verbs needn't pay

        return before_after(result)
    rows = list(_rows(result))
    width = max((len(name) for name, _ in rows if len(name) <= _NAME_SHOWN), default=0)
    return "".join(f"{name:<{width}}  {value}".rstrip() + "\n" for name, value in rows)


def _rows(result: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in result.items():
        if isinstance(value, Mapping) and not _is_short(value):
            yield indent + name, ""
            yield from _rows(value, f"{indent}  ")
        elif isinstance(value, (list, tuple)) and _is_lines(value):
            yield from ((indent + name if i == 0 else "", str(item)) for i, item in enumerate(value))
        else:
            yield indent + name, _cell(value)


def _is_short(value: Mapping[str, Any]) -> bool:
    return len(value) <= 3 and not any(isinstance(item, (Mapping, list, tuple)) for item in value.values())


def _is_lines(value: Any) -> bool:
    return 0 < len(value) <= 10 * _LIST_SHOWN and all(isinstance(item, (str, PurePath)) for item in value)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_cell(item) for item in value)
        return (shown or "-") if len(value) <= _LIST_SHOWN else f"({len(value)} entries)"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items()) or "-"
    return "-" if value is None else str(value)
