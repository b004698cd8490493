"""Pictures that look like none of the others, and tables of their fingerprints."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from essa_dist.packing.guards import Table, fingerprint, table_of

MakeTable = Callable[..., Table]


def draw(seed: int, width: int = 150, height: int = 130) -> Image.Image:
    """Detail on several scales, as in a photograph."""
    random = np.random.default_rng(seed)
    mixed = np.zeros((height, width), np.float64)
    for cells, weight in ((4, 1.0), (9, 0.7), (20, 0.4)):
        coarse = Image.fromarray(random.normal(size=(cells, cells)).astype(np.float32))
        mixed += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((128 + 36 * mixed).clip(0, 255).astype(np.uint8))


@pytest.fixture
def scene() -> Callable[..., Image.Image]:
    """``scene(3)`` is picture number 3."""
    return draw


@pytest.fixture
def make_table() -> MakeTable:
    """``make_table(pictures, "train train test")``: one file and no patient each, unless said."""

    def make(pictures: Sequence[Image.Image], split: str, **columns: Any) -> Table:
        of_each = split.split()
        names = tuple(dict.fromkeys(of_each))
        given: dict[str, Any] = {
            "key": [f"k{i}" for i in range(len(of_each))],
            "splits": names,
            "split": np.array([names.index(one) for one in of_each]),
            "patient": np.full(len(of_each), -1),
            "file": np.arange(len(of_each)),
            "fingerprint": table_of([fingerprint(np.asarray(one)) for one in pictures]),
        }
        return Table(**given | columns)

    return make
