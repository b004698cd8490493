"""What the small members of a sample say of it: class or classes, patient, split."""

import json
from typing import Any, NamedTuple

from essa_dist.data.header import Meaning, read_meaning
from essa_dist.data.plan import stable_seed
from essa_dist.packing.foreign.config import IndexConfig

MAX_NAME = 64
"""Characters in the name of a class."""

Flags = dict[str, int] | list[int]


class Facts(NamedTuple):
    """Of one sample, as far as its members tell. Written to JSON between the scan and the merge."""

    label: str | None = None
    """Number or name of its class."""
    labels: Flags | None = None
    """Flags 0, 1 and -1, by name of the class or by position in the classes."""
    patient: int | None = None
    """A hash: what identifies a patient is written nowhere."""
    split: str | None = None
    text: str | None = None
    """Of the ``.txt``, where it may be the name of a class."""
    meaning: Meaning | None = None
    """Slope, intercept and window of the stored values, as ``essa pack`` writes them."""


def read_facts(suffix: str, data: bytes, config: IndexConfig) -> Facts:
    """Facts from one member (cls, json or txt). Raises ValueError where it can't be understood."""
    if suffix == "cls":
        return Facts(label=_name(_text(data, suffix))) if config.label in ("auto", "cls") else Facts()
    if suffix == "txt":
        text = _text(data, suffix) if config.label in ("auto", "txt") else ""
        return Facts(text=text if 0 < len(text) <= MAX_NAME and "\n" not in text else None)
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("its json can't be read") from error
    return _from_json(fields, config) if isinstance(fields, dict) else Facts()


def join(one: Facts, two: Facts) -> Facts:
    """The facts of both; where both tell, those of ``one``."""
    return one._replace(
        **{name: value for name, value in two._asdict().items() if getattr(one, name) is None}
    )


def _from_json(fields: dict[str, Any], config: IndexConfig) -> Facts:
    label, labels = fields.get(config.json_label), fields.get(config.json_labels)
    if isinstance(label, list | dict) and labels is None:
        label, labels = None, label
    patient, split = fields.get(config.json_patient), fields.get(config.json_split)
    take = config.label in ("auto", "json")
    return Facts(
        label=None if label is None or not take else _name(label),
        labels=None if labels is None or not take else _flags(labels),
        patient=None if patient in (None, "") else stable_seed("patient", str(patient)),
        split=None if split in (None, "") else _split(split),
        meaning=read_meaning(fields),
    )


def _name(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"its label is no number and no name: {str(value)[:20]!r}")
    name = str(value).strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError("its label is empty" if not name else "its label is no name of a class")
    return name


def _flags(value: Any) -> Flags:
    if isinstance(value, dict):
        return {_name(name): _flag(flag) for name, flag in value.items()}
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return {_name(one): 1 for one in value}
    if isinstance(value, list):
        return [_flag(one) for one in value]
    raise ValueError("its labels are neither a list nor a mapping")


def _flag(value: Any) -> int:
    if value is None:
        return -1
    if isinstance(value, int | float) and value in (-1, 0, 1):
        return int(value)
    raise ValueError(f"its labels hold {str(value)[:20]!r}; flags are 0, 1 or -1")


def _split(value: Any) -> str:
    name = str(value).strip()
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError("the name of its split must be of letters, digits, - and _")
    return name


def _text(data: bytes, suffix: str) -> str:
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"its {suffix} is no text") from error
