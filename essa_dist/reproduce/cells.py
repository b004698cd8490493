"""What a comparison consists of: data sets, cells, and what a paper claims of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from essa_dist.reproduce.config import ReproduceConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

ADAPTERS = ("full", "apla", "lora", "bitfit", "vpt")
"""Those that the ESSA paper compares."""
BASE = "base"
"""The start without self-supervised adaptation."""


class Sizes(NamedTuple):
    """Images of each split."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class DataSet:
    name: str
    """Its folder in ``data_root``."""
    sizes: Sizes
    """As published, or about; the estimates use them until the set is packed."""
    pack: tuple[str, ...]
    """Words of `essa pack` behind the source and ``out``."""
    raw: str = ""
    """Path of the raw images below ``data_root``, where the grid packs them itself."""


@dataclass(frozen=True)
class Cell:
    """One run: a recipe and what differs from it."""

    name: str
    verb: Literal["adapt", "finetune"]
    recipe: str
    """Path below configs/."""
    data: DataSet
    split: str
    """Of the training images."""
    share: float = 1.0
    """Of the split's images that are trained on."""
    settings: tuple[str, ...] = ()
    """``key=value``, without what the machine decides: paths, ``resume``."""
    start: str = ""
    """Name of the self-supervised cell whose run is the model."""
    weights: str = ""
    """Key of ``weights`` that has to be given."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the table says of it: model, fraction, start, adapter, seed."""


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that a table can hold or not hold.

    Rows that match ``better`` are compared with those that match ``than`` and are otherwise alike, apart from the
    facts that either names.
    """

    text: str
    source: str
    better: Mapping[str, Any]
    than: Mapping[str, Any]
    share: float = 1.0
    """Of the comparisons that have to agree."""
    within: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Facts of the rows that it speaks of, with the values allowed."""


@dataclass(frozen=True)
class Figure:
    """A number of a paper beside that of one group of cells."""

    text: str
    source: str
    value: float
    of: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """A whole comparison."""

    sets: tuple[DataSet, ...]
    cells: Callable[[ReproduceConfig, Sequence[int]], list[Cell]]
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...] = ()
    seeds: tuple[int, ...] = (0,)
    tflops: float = 100.0
    """Assumed, sustained. Of an A100: NeMo trains ViT-g/14 at 86.6 img/s of 1.8 TFLOP (156), DINOv2's README has ViT-L/16
    at some 93 img/s (about 140 with the teacher); smaller models, fewer images a batch and the loader reach less."""
    start_s: float = 30.0
    """Seconds before the first update and behind the last one."""
    device: str = "A100"
    packs: bool = False
    """Whether it packs the raw images itself."""


def percent(fraction: float) -> str:
    """``f1`` of 0.01, as in names of cells."""
    return f"f{100 * fraction:g}"
