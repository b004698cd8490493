"""Runs of a few updates under any strategy, by ``steps_of.py``, and what they gave."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from tests.distributed.launching import TOLD, launch

STEPS_OF = str(Path(__file__).with_name("steps_of.py"))
DEADLINE_S = 280.0
Outcome = dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]
"""Of each run the tensors and losses of ``steps_of.py``, and its metadata."""


def run_steps(
    packed: str, folder: Path, config: str, processes: int, runs: Mapping[str, Sequence[str]], n_steps: int
) -> Outcome:
    """``n_steps`` updates of each of ``runs``, named overrides of one tiny recipe, one after another in the same processes."""
    recipe = [
        "out=unused",
        f"data.train={packed}",
        "duration=40",
        "batch_size=4",
        "precision=fp32",
        "device=cpu",
        "backbone.name=test_vit",
        "backbone.weights=random",
        "objective.head={prototypes: 32, hidden: 16, bottleneck: 8}",
        "data.crops={policy: medical, global_size: 48, local_size: 32, n_local: 2}",
        "data.workers=0",
        "optim.lr=1e-3",
    ]
    words = {name: [*recipe, *overrides] for name, overrides in runs.items()}
    args = [STEPS_OF, str(folder), str(n_steps), json.dumps(words)]
    for ended in launch(processes, args, env=TOLD[config], timeout=DEADLINE_S):
        assert ended.exit_code == 0, ended.stderr[-4000:]
    return {name: _read(folder / f"{name}.safetensors") for name in runs}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata()
