"""Tiny labelled sets that are easy to learn, and runs of a few updates on them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from essa_dist import adapt, finetune, pack

SIDE = 32
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
COUNTS = {"train": 7, "val": 5, "test": 4}
RECIPE = (
    f"data.image_size={SIDE}",
    "data.workers=0",
    "duration=6",
    "batch_size=6",
    "precision=fp32",
    "device=cpu",
    "threads=1",
    "log_every=1",
    "backbone.name=test_vit",
    "backbone.weights=random",
    "checkpoint.every=2",
    "validation.every=3",
    "optim.lr=1e-2",
    "test.resamples=0",
)
"""Overrides of a run of less than a second, but for its data and its folder."""


class Tuned(NamedTuple):
    """A run that has ended."""

    run: Path
    result: dict[str, Any]

    def rows(self) -> dict[str, Any]:
        """``test.npz``."""
        return dict(np.load(self.run / "evaluation" / "test.npz"))


def noisy(colour: tuple[int, int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 40, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def make_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``make_set(train={"red": 3}, val=...)``: noisy pictures of these colours, packed."""

    def make(**splits: dict[str, int]) -> str:
        root = tmp_path_factory.mktemp("colours")
        for number, (split, counts) in enumerate(splits.items()):
            for name, count in counts.items():
                (root / "images" / split / name).mkdir(parents=True)
                for i in range(count):
                    seed = 1000 * number + 100 * len(name) + i
                    noisy(COLOURS[name], seed).save(root / "images" / split / name / f"{i}.png")
        pack(str(root / "images"), out=str(root / "packed"), workers=0, report=False)
        return str(root / "packed")

    return make


@pytest.fixture(scope="session")
def cells(make_set: Callable[..., str]) -> str:
    """Three classes, told apart by their colour, in three splits."""
    return make_set(**{split: dict.fromkeys(COLOURS, count) for split, count in COUNTS.items()})


@pytest.fixture(scope="session")
def pair(make_set: Callable[..., str]) -> str:
    """Two classes."""
    return make_set(**{split: dict.fromkeys(("red", "blue"), count) for split, count in COUNTS.items()})


@pytest.fixture(scope="session")
def findings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Patients with three findings; of the second it isn't known whether every fifth one has it."""
    root = tmp_path_factory.mktemp("findings")
    with (root / "list.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient", "split", "bright", "green", "late"])
        for i in range(32):
            noisy((200 * (i % 2), 200 * (i // 2 % 2), 60), i).save(root / f"{i}.png")
            split = ("train", "train", "val", "test")[i // 4 % 4]
            table.writerow([f"{i}.png", f"p{i}", split, i % 2, -1 if i % 5 == 0 else i // 2 % 2, i // 16])
    pack(str(root / "list.csv"), root=str(root), out=str(root / "packed"), workers=0, report=False)
    return str(root / "packed")


@pytest.fixture(scope="session")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of three sizes, bright where their masks have class 1."""
    root, rng = tmp_path_factory.mktemp("nuclei"), np.random.default_rng(5)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for kind in ("images", "masks"):
            (root / "src" / split / kind).mkdir(parents=True)
        for i in range(count):
            coarse = rng.integers(0, 2, (2 + i % 3, 3))
            mask = np.kron(coarse, np.ones((16, 16))).astype(np.uint8)
            image = np.repeat(mask[:, :, None] * 200 + 20, 3, axis=2).astype(np.uint8)
            Image.fromarray(image).save(root / "src" / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / "src" / split / "masks" / f"{i}.png")
    classes = ("ground", "cell")
    pack(str(root / "src"), out=str(root / "packed"), mask_classes=classes, workers=0, report=False)
    return str(root / "packed")


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., Tuned]:
    """``tune("name", packed, "key=value", ...)`` in ``tmp_path / "name"``."""

    def call(name: str, packed: str, *overrides: str) -> Tuned:
        run = tmp_path / name
        return Tuned(run, finetune(None, *RECIPE, f"out={run}", f"data.train={packed}", *overrides))

    return call


@pytest.fixture(scope="session")
def adapted(cells: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """``adapted("lora")``: a run of ``adapt`` of one update with this adapter, made once."""
    root = tmp_path_factory.mktemp("adapted")

    def make(adapter: str) -> str:
        run = root / adapter
        if not run.exists():
            adapt(
                None,
                *(word for word in RECIPE if not word.startswith(("data.image_size", "valid", "test"))),
                f"out={run}",
                f"data.train={cells}",
                f"adapter={adapter}",
                "duration=1",
                "data.crops={global_size: 32, local_size: 16, n_local: 1}",
                "objective.head={prototypes: 8, hidden: 8, bottleneck: 4}",
            )
        return str(run)

    return make
