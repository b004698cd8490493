"""Supervised adaptation gives the same losses and the same scores on any number of processes, however they share it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from essa_dist.runfolder import committed_checkpoints
from tests.distributed.launching import TOLD, launch
from tests.finetune.conftest import RECIPE, cells, make_set, nuclei

__all__ = ["cells", "make_set", "nuclei"]

STRATEGIES = {
    "ddp": ("weighted", "sgd", "resumed", "frozen", "masks"),
    "zero2": ("sgd", "resumed"),
    "zero3": ("weighted", "masks"),
    "fsdp2": ("weighted", "sgd", "frozen", "masks"),
}
COMPARED = ("loss", "lr", "val_", "head_lr")


@pytest.fixture(scope="module")
def runs(cells: str, nuclei: str) -> dict[str, list[str]]:
    """The overrides of each run; 15 images to validate on and 12 to test, or 3 and 3: not all shares are equal."""
    # Dropout would draw other numbers on each rank.
    sgd = (
        f"data.train={cells}",
        "optim.kind=sgd",
        "adapter={kind: lora, dropout: 0}",
        "schedule.head_warmup=1",
    )
    short = ("duration=2", "validation.every=2")
    own = {
        "weighted": (
            f"data.train={cells}",
            "data.shots=6",
            "task={kind: multiclass, class_weights: balanced}",
        ),
        "sgd": sgd,
        "resumed": sgd,
        "frozen": (f"data.train={cells}", "adapter=frozen", *short),
        "masks": (f"data.train={nuclei}", "decoder={kind: setr_pup, channels: 8}", *short),
    }
    common = [word for word in RECIPE if not word.startswith(("duration", "validation"))]
    return {name: [*common, "duration=4", "validation.every=2", *words] for name, words in own.items()}


@pytest.fixture(scope="module")
def alone(runs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs by one process."""
    folder = tmp_path_factory.mktemp("alone")
    tune(1, "single", folder, runs)
    return folder


def tune(n: int, strategy: str, folder: Path, runs: dict[str, list[str]]) -> None:
    words = [str(Path(__file__).with_name("finetunes_of.py")), str(folder), json.dumps(runs)]
    for ended in launch(n, words, env=TOLD[strategy]):
        assert ended.exit_code == 0, ended.stderr[-4000:]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith(COMPARED)} for row in read]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_learn_and_score_as_one(
    strategy: str, alone: Path, runs: dict[str, list[str]], tmp_path: Path
) -> None:
    names = STRATEGIES[strategy]
    tune(2, strategy, tmp_path, {name: runs[name] for name in names})
    ours, theirs = results(tmp_path), results(alone)
    for name in names:
        two, one = rows(tmp_path / name), rows(alone / name)
        assert [row.keys() for row in two] == [row.keys() for row in one], name
        for a, b in zip(two, one, strict=True):
            assert a == pytest.approx(b, abs=1e-5), name
        assert ours[name]["test"]["values"] == pytest.approx(theirs[name]["test"]["values"], abs=1e-5), name
        assert ours[name]["best_step"] == theirs[name]["best_step"]
        a_rows, b_rows = (np.load(folder / name / "evaluation" / "test.npz") for folder in (tmp_path, alone))
        assert list(a_rows["keys"]) == list(b_rows["keys"])
        assert np.abs(a_rows["loss"] - b_rows["loss"]).max() < 1e-5, name
    if "resumed" in names:
        for file in ("student", "optimizer"):  # with SGD's momentum
            newest = [committed_checkpoints(tmp_path / name)[-1] for name in ("sgd", "resumed")]
            whole, resumed = (load_file(folder / f"{file}.safetensors") for folder in newest)
            assert whole.keys() == resumed.keys()
            assert whole
            assert all(torch.equal(t, resumed[key]) for key, t in whole.items())
