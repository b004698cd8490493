"""Read back what a run left in its folder; every part may be absent."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from essa_dist import runfolder
from essa_dist.errors import UsageError

log = logging.getLogger(__name__)

Result = dict[str, Any]  # what one evaluation returned


@dataclass(frozen=True)
class Pair:
    """The same evaluation of the frozen model and of the adapted one."""

    before: Result
    after: Result

    @property
    def protocol(self) -> str:
        return str(self.after["protocol"])

    @property
    def setting(self) -> str:
        """Input of the evaluation, e.g. ``224 px`` or ``224 px, crop 0.65``."""
        crop, pooling = self.after.get("crop") or 1.0, self.after.get("pooling") or "cls"
        parts = [f"{self.after['image_size']} px"]
        parts += [f"crop {crop:g}"] if crop != 1.0 else []
        return ", ".join(parts + ([f"{pooling} features"] if pooling != "cls" else []))

    @property
    def title(self) -> str:
        return f"{PROTOCOLS.get(self.protocol, self.protocol)} at {self.setting}"


PROTOCOLS = {"knn": "k-NN", "linear": "linear probe"}


@dataclass(frozen=True)
class Record:
    """A run folder, read. ``notes`` says what was there but couldn't be read."""

    run: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    pairs: list[Pair]
    notes: tuple[str, ...]

    @property
    def base_name(self) -> str:
        """The frozen model as one would name it in a command: ``name`` or ``name@weights file``."""
        backbone = self.config.get("backbone")
        if not isinstance(backbone, dict) or "name" not in backbone:
            return "MODEL"
        weights = str(backbone.get("weights", "auto"))
        return str(backbone["name"]) + ("" if weights in ("auto", "random") else f"@{weights}")


def read_record(run: Path) -> Record:
    """Read a run folder. Raises ``UsageError`` when ``run`` is no folder or holds nothing of a run."""
    names = (runfolder.CONFIG, runfolder.METRICS, runfolder.SUMMARY, runfolder.EVALUATION)
    if not any((run / name).exists() for name in names):
        raise UsageError(
            f"run={run} is no run folder (it has none of {', '.join(names)}): give the out= of a run"
        )
    notes: list[str] = []
    config = _mapping(run / runfolder.CONFIG, notes)
    metrics = _json_lines(run / runfolder.METRICS, notes)
    summary = _mapping(run / runfolder.SUMMARY, notes)
    files = sorted((run / runfolder.EVALUATION).glob("*.json"))
    results = [_mapping(path, notes) | {"_file": path.stem} for path in files]
    pairs = _pairs_of_summary(summary) or pair_results(results, run)
    return Record(run, config, metrics, summary, pairs, tuple(notes))


def _mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping; absent or unreadable gives an empty one and a note."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        return _note(notes, f"{path.name} can't be read: {str(error).splitlines()[0]}")
    return value if isinstance(value, dict) else _note(notes, f"{path.name} holds no mapping")


def _json_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file. A killed run may leave half a line: it is left out and counted."""
    if not path.is_file():
        return []
    rows, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
        else:
            bad += bool(line.strip())
    if bad:
        _note(notes, f"{path.name}: {bad} incomplete line(s) left out")
    # A resumed run may write a step again, or a look at it that it makes up for: the later values are those that led on.
    whole: dict[Any, dict[str, Any]] = {}
    for row in rows:
        whole[row["step"]] = whole.get(row["step"], {}) | row
    return list(whole.values())


def _note(notes: list[str], text: str) -> dict[str, Any]:
    log.warning("%s", text)
    notes.append(text)
    return {}


def _pairs_of_summary(summary: dict[str, Any]) -> list[Pair]:
    rows = summary.get("rows") or []
    common = ("protocol", "image_size", "crop")
    shared = [{key: row[key] for key in common if key in row} for row in rows]
    return [
        Pair(before=same | row["before"], after=same | row["after"])
        for same, row in zip(shared, rows, strict=True)
        if row.get("before") and row.get("after")
    ]


def pair_results(results: list[Result], run: Path) -> list[Pair]:
    """Match evaluations of the run with those of another model at the same protocol, size and crop.

    An evaluation counts as "after" when its file name says so or its model is the run (or inside it).
    """
    sides: dict[tuple[Any, ...], dict[str, Result]] = {}
    for result in results:
        if "balanced_accuracy" not in result:
            continue
        key = tuple(result.get(name) for name in ("protocol", "image_size", "crop", "pooling"))
        sides.setdefault(key, {})["after" if _is_after(result, run) else "before"] = result
    return [Pair(pair["before"], pair["after"]) for pair in sides.values() if len(pair) == 2]


def _is_after(result: Result, run: Path) -> bool:
    name = str(result.get("_file", ""))
    if "before" in name or "after" in name:
        return "after" in name
    model = str(result.get("model", ""))
    if model.startswith("student:"):  # a second result of the run, not its frozen model
        model = model.removeprefix("student:")
    return Path(model).resolve().is_relative_to(run.resolve())
