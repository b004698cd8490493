"""Which cells there are, what each would run, which are finished, and what stands in the way of the others."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal

from essa_dist.data.manifest import MANIFEST_FILE, read_manifest
from essa_dist.errors import UsageError
from essa_dist.evaluation.suite.store import content_key
from essa_dist.reproduce.cells import CONFIGS, Cell, DataSet, Grid, Sizes
from essa_dist.reproduce.config import ReproduceConfig
from essa_dist.reproduce.estimate import Work, work_of
from essa_dist.settings import Config, load
from essa_dist.settings.files import read_tree
from essa_dist.settings.words import several
from essa_dist.verbs import VERBS, config_class

Status = Literal["done", "missing", "data", "weights"]
"""data, weights: they have to be given first."""

MACHINE = ("out", "resume", "overwrite", "threads", "device")
"""Settings that decide no result."""


@dataclass(frozen=True)
class Planned:
    """A cell on this machine."""

    cell: Cell
    words: tuple[str, ...]
    """Behind `essa`, without ``resume`` and ``overwrite``."""
    run: Path
    result: Path
    """File of its result; there once it is finished."""
    identity: str
    """Hash of all that decides its result."""
    status: Status
    work: Work

    @property
    def command(self) -> str:
        """As a user would type it."""
        return shlex.join(("essa", *self.words))


@dataclass(frozen=True)
class Plan:
    """All cells asked for, in the order in which they are run: self-supervised ones first."""

    grid: Grid
    config: ReproduceConfig
    cells: tuple[Planned, ...]
    sets: dict[str, str]
    """Set to the command that packs it, empty where it is packed."""
    seeds: tuple[int, ...]


def make_plan(grid: Grid, config: ReproduceConfig) -> Plan:
    """Raises UsageError for settings that don't fit, and where ``only`` names no cell."""
    seeds = tuple(dict.fromkeys(config.seeds)) or grid.seeds
    everything = grid.cells(config, seeds)
    chosen = _chosen(everything, several(config.only))
    used = {cell.data.name: cell.data for cell in chosen}
    sets = {
        name: "" if is_packed(grid, config, one) else shlex.join(pack_words(grid, config, one))
        for name, one in used.items()
    }
    planned: dict[str, Planned] = {}
    for cell in chosen:  # what a cell starts from comes before it
        planned[cell.name] = _planned(cell, grid, config, planned.get(cell.start))
    return Plan(grid, config, tuple(planned.values()), sets, seeds)


def _chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    wanted = [cell for cell in cells if not only or any(fnmatch(cell.name, one) for one in only)]
    if not wanted:
        raise UsageError(
            f"only={','.join(only)} names no cell; their names are like {', '.join(c.name for c in cells[:: max(1, len(cells) // 3)])}"
        )
    starts = {cell.start for cell in wanted}
    names = {cell.name for cell in wanted}
    together = [cell for cell in cells if cell.name in starts | names]
    return sorted(together, key=lambda cell: cell.verb != "adapt")


def packed_folder(grid: Grid, config: ReproduceConfig, one: DataSet) -> Path:
    """Where the packed set is, or belongs."""
    return Path(config.out, "data", one.name) if grid.packs else Path(config.data_root, one.name)


def is_packed(grid: Grid, config: ReproduceConfig, one: DataSet) -> bool:
    """Whether it is there."""
    return (packed_folder(grid, config, one) / MANIFEST_FILE).is_file()


def pack_words(grid: Grid, config: ReproduceConfig, one: DataSet) -> tuple[str, ...]:
    """The command that packs it; RAW stands for a folder that only the user knows."""
    raw = str(Path(config.data_root, one.raw)) if grid.packs else f"RAW_{one.name.upper()}"
    return ("essa", "pack", raw, f"out={packed_folder(grid, config, one)}", *one.pack)


def _planned(cell: Cell, grid: Grid, config: ReproduceConfig, start: Planned | None) -> Planned:
    folder, out = packed_folder(grid, config, cell.data), Path(config.out)
    run = out / "runs" / cell.name
    words = [f"data.train={folder}:{cell.split}", *cell.settings]
    if start is not None:
        words.append(f"model={start.run}")
    elif cell.weights:
        words.append(f"backbone.weights={config.weights.get(cell.weights, cell.weights.upper() + '.pth')}")
    words += config.settings
    settings = load(config_class(VERBS[cell.verb]), _recipe(cell.verb, cell.recipe), [*words, f"out={run}"])
    packed = is_packed(grid, config, cell.data)
    manifest = read_manifest(folder) if packed else None
    made_from = {
        "settings": deciding(settings),
        "start": start.identity if start else "",
        "data": manifest.index_sha256 if manifest else "",
    }
    identity = content_key(json.loads(json.dumps(made_from, default=str)))
    result = out / "cells" / f"{cell.name}.json"
    sizes = cell.data.sizes
    if manifest is not None:
        n = manifest.samples
        sizes = Sizes(
            n.get("train", n.get(cell.split, 0)),
            n.get("val", 0),
            n.get("test", 0),
        )
    status: Status = "missing"
    if read_result(result, identity) is not None:
        status = "done"
    elif not packed and not grid.packs:
        status = "data"
    elif cell.weights and cell.weights not in config.weights:
        status = "weights"
    return Planned(
        cell,
        (cell.verb, _shown(CONFIGS / cell.recipe), *words, f"out={run}"),
        run,
        result,
        identity,
        status,
        work_of(settings, sizes, max(1, round(cell.share * sizes.train))),
    )


def deciding(settings: Config) -> dict[str, Any]:
    """What of a run's settings decides its result, wherever it lies: without what has its default.

    So a setting that a later version of this library adds, and that changes nothing as it comes, doesn't ask for weeks of
    finished cells again.
    """
    tree = differing(settings)
    tree["data"] = {key: value for key, value in tree.get("data", {}).items() if key != "train"}
    weights = Path(tree.get("backbone", {}).get("weights", ""))
    if weights.is_file():
        tree["backbone"]["weights"] = [weights.name, weights.stat().st_size]
    return {key: value for key, value in tree.items() if key not in (*MACHINE, "model")}


def differing(settings: Config) -> dict[str, Any]:
    """The settings that are not their class's defaults, as a tree; every ``kind``, as it says which class that is."""
    found: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        default = ... if field.is_required() else field.get_default(call_default_factory=True)
        if name == "kind" or value != default:
            found[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return differing(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


@cache  # a grid has hundreds of cells and a few recipes
def _recipe(verb: str, recipe: str) -> dict[str, Any]:
    return read_tree(config_class(VERBS[verb]), CONFIGS / recipe)


def _shown(path: Path) -> str:
    """From here, where it is below here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def read_result(file: Path, identity: str) -> dict[str, Any] | None:
    """A finished cell's result; None where there is none, or one that was made from other settings or images."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("identity") == identity and "result" in found else None
