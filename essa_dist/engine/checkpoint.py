"""Checkpoints: a folder that is complete or absent, holding what was trained and never a frozen weight.

``student``, ``teacher`` (trained tensors of trunk and heads), ``buffers`` (centres, head standardisation, adapter
rows) and ``optimizer`` are safetensors files, the rest is JSON: nothing in a checkpoint can execute.
Random state is not stored, because every step's is a function of the seed and the step.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from essa_dist.backbones.weights import misfits, other_trunk
from essa_dist.disk import flush
from essa_dist.errors import UsageError
from essa_dist.objectives import DINOv2Objective
from essa_dist.runfolder import MARKER, checkpoint_folder, committed_checkpoints

STATE = "state.json"


def save(
    folder: Path, objective: DINOv2Objective, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write a checkpoint at ``folder``.

    It is written beside, flushed to disk and renamed, the marker last, so that a kill or a full disk at any
    moment leaves the earlier checkpoints and no half one. Raises OSError; nothing is left behind then.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, tensors in _tensors(objective, optimizer).items():
            save_file(
                {key: t.detach().cpu().contiguous() for key, t in tensors.items()},
                temporary / f"{name}.safetensors",
            )
        (temporary / STATE).write_text(json.dumps(state, indent=1))
        (temporary / MARKER).write_text("")
        for file in temporary.iterdir():
            flush(file)
        flush(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        flush(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def restore(folder: Path, objective: DINOv2Objective, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into objective and optimizer, strictly; returns its state.

    Raises UsageError naming the first tensors that don't fit when it is of another architecture or adapter.
    """
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    saved = {name: load_file(folder / f"{name}.safetensors") for name in ("student", "teacher", "buffers")}
    _fill(objective.branches.students, saved["student"], folder)
    _fill(objective.branches.teachers, saved["teacher"], folder)
    _fill(dict(objective.named_buffers()), saved["buffers"], folder)
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in objective.branches.students.items():
        found = {kind: moments.get(f"{name}/{kind}") for kind in ("exp_avg", "exp_avg_sq", "step")}
        tensors = {kind: t.to(parameter.device) for kind, t in found.items() if t is not None}
        if tensors:  # a tensor that was frozen until now has none
            optimizer.state[parameter] = tensors
    return state


def check_trunk(folder: Path, state: Mapping[str, Any], trunk_sha256: str) -> None:
    """UsageError if the checkpoint was trained over another trunk than the one with this hash."""
    if wrong := other_trunk(state, trunk_sha256):
        raise UsageError(f"checkpoint {folder} was {wrong}")


def check_data(run: Path, data: Mapping[str, str | None]) -> None:
    """UsageError if the newest checkpoint of ``run`` was trained on other data than ``data`` (see ``train.identity``)."""
    for folder in committed_checkpoints(run)[-1:]:
        state = json.loads((folder / STATE).read_text())
        changed = [key for key, now in data.items() if state.get(key) not in (None, now)]
        if changed:
            raise UsageError(
                f"resume=true, but checkpoint {folder} was trained on other data than data.train names now ("
                f"{'another split' if changed == ['data_split'] else 'its manifest.json is another'}): name those of "
                "before, or start a new run"
            )


def prune(run: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest complete checkpoints, and leftovers of interrupted writes."""
    for folder in committed_checkpoints(run)[:-keep]:
        (folder / MARKER).unlink()  # no longer a checkpoint, whatever happens from here on
        shutil.rmtree(folder)
    for leftover in checkpoint_folder(run, 0).parent.glob(".step_*.writing"):
        shutil.rmtree(leftover, ignore_errors=True)


def _tensors(objective: DINOv2Objective, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    moments = {
        f"{name}/{kind}": tensor
        for name, parameter in objective.branches.students.items()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }
    return {
        "student": dict(objective.branches.students),
        "teacher": dict(objective.branches.teachers),
        "buffers": dict(objective.named_buffers()),
        "optimizer": moments,
    }


@torch.no_grad()
def _fill(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: Path) -> None:
    wrong = misfits(own, saved, here="this model")
    if wrong:
        raise UsageError(
            f"checkpoint {folder} is of another architecture or adapter: {wrong}; resume with the run's own config.yaml"
        )
    for key, tensor in own.items():
        tensor.copy_(saved[key])
