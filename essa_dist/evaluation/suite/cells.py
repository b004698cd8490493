"""One cell of a suite: one protocol, model, data set, label fraction and seed; kept so that it is done once."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor

from essa_dist.evaluation.protocols import PROTOCOLS
from essa_dist.evaluation.readings import KINDS, Reading
from essa_dist.evaluation.suite.config import SEED, SuiteConfig


class Cell(NamedTuple):
    """Its names in the suite."""

    data: str
    model: str
    protocol: str
    fraction: float
    seed: int

    def __str__(self) -> str:
        part = "" if self.fraction == 1 else f", {self.fraction:.4g} of the labels"
        return f"{self.protocol} of {self.model} on {self.data}{part}, seed {self.seed}"


class Group(NamedTuple):
    """What a table has a value for: the seeds of one model on one data set."""

    data: str
    model: str
    protocol: str
    fraction: float


class Done(NamedTuple):
    """A finished cell."""

    readings: list[Reading]
    facts: dict[str, Any]
    """``n_bank``, ``n_test``, ``classes``, ``image_size``, ``overlap``, ``seconds``"""
    patients: Tensor | None
    """[M] of the test images."""


def cells(config: SuiteConfig) -> Iterator[Cell]:
    """Model after model, so that each is in memory once; what doesn't depend on the seed, with the first alone."""
    for model, ref in config.models.items():
        of_model = config.seeds if SEED in ref else config.seeds[:1]
        for seed, data, fraction, protocol in product(
            of_model, config.data, config.fractions, config.protocols
        ):
            is_once = SEED in ref or not is_random(protocol, fraction)
            for own in (seed,) if is_once else config.seeds:
                yield Cell(data, model, protocol, fraction, own)


def is_random(protocol: str, fraction: float) -> bool:
    """Whether the readings of the same features depend on the seed."""
    return PROTOCOLS[protocol].is_random or fraction < 1


def reference(config: SuiteConfig, cell: Cell) -> str:
    """The model that the cell is about, as ``load_model`` takes it."""
    return config.models[cell.model].replace(SEED, str(cell.seed))


def settings(config: SuiteConfig, cell: Cell) -> dict[str, Any]:
    """What decides the cell's readings, apart from its features."""
    own = {key: getattr(config, key) for key in PROTOCOLS[cell.protocol].settings}
    seed = cell.seed if is_random(cell.protocol, cell.fraction) else None
    return {"protocol": cell.protocol, "fraction": cell.fraction, "seed": seed, **own}


def to_tensors(done: Done) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """For :class:`Store`: outputs of each reading, the common targets and patients; and the facts."""
    tensors = {f"outputs.{i}": reading.outputs for i, reading in enumerate(done.readings)}
    tensors["targets"] = done.readings[0].targets
    if done.patients is not None:
        tensors["patients"] = done.patients
    told = [
        {
            "kind": type(reading).__name__.lower(),
            "setting": reading.setting,
            "names": list(reading.names),
            "ordered": reading.ordered,
        }
        for reading in done.readings
    ]
    return tensors, {"readings": told, "facts": done.facts}


def from_tensors(tensors: dict[str, Tensor], told: dict[str, Any]) -> Done:
    """The inverse of :func:`to_tensors`."""
    readings = [
        KINDS[one["kind"]](
            one["setting"], tuple(one["names"]), tensors[f"outputs.{i}"], tensors["targets"], one["ordered"]
        )
        for i, one in enumerate(told["readings"])
    ]
    return Done(readings, told["facts"], tensors.get("patients"))


def in_groups(done: Sequence[tuple[Cell, Done]]) -> dict[Group, dict[int, Done]]:
    """Group to seed to what was found."""
    groups: dict[Group, dict[int, Done]] = {}
    for cell, found in done:
        groups.setdefault(Group(*cell[:4]), {})[cell.seed] = found
    return groups
