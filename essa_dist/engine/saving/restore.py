"""Going on from a checkpoint, whatever strategy and number of ranks it comes from: rank 0 reads, every rank takes its part."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from essa_dist.backbones.weights import misfits, other_trunk
from essa_dist.distributed.messages import Channel
from essa_dist.distributed.strategies.interface import Strategy
from essa_dist.distributed.strategies.moments import state_names
from essa_dist.engine.saving.tensorfile import DTYPES
from essa_dist.errors import UsageError
from essa_dist.export.saved import FILES, check_files, damaged, read_state, tensor_file
from essa_dist.runfolder import committed_checkpoints


def resume(run: Path, strategy: Strategy, channel: Channel, *, trunk_sha256: str) -> dict[str, Any] | None:
    """Put the newest complete checkpoint of ``run`` into ``strategy``, on every rank; its state, None where there is none.

    Only rank 0 reads. Raises on every rank what :func:`load` does.
    """

    def newest() -> str | None:
        found = committed_checkpoints(run)
        return str(found[-1]) if found else None

    folder = channel.together(newest)
    return None if folder is None else load(Path(folder), strategy, channel, trunk_sha256=trunk_sha256)


def load(folder: Path, strategy: Strategy, channel: Channel, *, trunk_sha256: str) -> dict[str, Any]:
    """Put a checkpoint into ``strategy``, strictly, on every rank; returns its state, with the folder as ``folder``.

    Rank 0 reads whole tensors, one at a time, and every rank keeps its part. Optimizer state that is not in the files
    stays absent. Raises UsageError on every rank, before anything is changed, when the files are damaged, of another
    architecture or adapter (naming the first tensors), or were trained over another trunk.
    """
    shapes = strategy.shapes()
    found = channel.together(lambda: _examine(folder, shapes, state_names(strategy.optimizer), trunk_sha256))
    for file, tensors in found["tensors"].items():
        opened = safe_open(tensor_file(folder, file), framework="pt") if channel.rank == 0 else None
        for name, (dtype, shape) in tensors.items():
            if opened is not None:
                whole = opened.get_tensor(name).contiguous()  # type: ignore[no-untyped-call]
            else:
                whole = torch.empty(shape, dtype=DTYPES[dtype])
            channel.broadcast(whole)
            strategy.fill(f"{file}/{name}", whole)
    strategy.filled()
    state: dict[str, Any] = found["state"]
    return state


def _examine(
    folder: Path, shapes: Mapping[str, torch.Size], kinds: Sequence[str], trunk_sha256: str
) -> dict[str, Any]:
    """State, and dtype and shape of every tensor, of a checkpoint that fits ``shapes``; UsageError of any other."""
    if empty := [name for name, shape in shapes.items() if math.prod(shape) == 0]:
        raise RuntimeError(f"this model has empty tensors, as of one rank's part: {empty[:4]}")
    state = read_state(folder)
    check_files(folder, state)
    check_trunk(folder, state, trunk_sha256)
    found = {file: _header(folder, file) for file in FILES}
    saved = {
        f"{file}/{name}": torch.empty(shape, device="meta")
        for file in FILES[:3]
        for name, (_, shape) in found[file].items()
    }
    own = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for file in FILES[:3]:
        _check_fit(folder, _within(own, file), _within(saved, file))
    moments = {name: torch.empty(shape, device="meta") for name, (_, shape) in found["optimizer"].items()}
    stepped = {name.rpartition("/")[0] for name in moments}
    students = _within(own, "student")
    expected = {
        f"{name}/{kind}": torch.empty((), device="meta") if kind == "step" else tensor
        for name, tensor in students.items()
        if name in stepped
        for kind in kinds
    }
    _check_fit(folder, expected, moments)
    return {"state": state | {"folder": str(folder)}, "tensors": found}


def _within(tensors: Mapping[str, torch.Tensor], file: str) -> dict[str, torch.Tensor]:
    prefix = f"{file}/"
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _check_fit(folder: Path, own: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    if wrong := misfits(own, saved, here="this model"):
        raise UsageError(
            f"checkpoint {folder} is of another architecture or adapter: {wrong}; resume with the run's own config.yaml"
        )


def _header(folder: Path, file: str) -> dict[str, tuple[str, list[int]]]:
    """Dtype and shape of the tensors of one file."""
    try:
        with safe_open(tensor_file(folder, file), framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            found = {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise damaged(folder, f"{file}.safetensors can't be read ({error})") from error
    if strange := [name for name, (dtype, _) in found.items() if dtype not in DTYPES]:
        raise damaged(folder, f"{file}.safetensors has a dtype of its own for {strange[0]}")
    return found


def check_trunk(folder: Path, state: Mapping[str, Any], trunk_sha256: str) -> None:
    """UsageError if the checkpoint was trained over another trunk than the one with this hash."""
    if wrong := other_trunk(state, trunk_sha256):
        raise UsageError(f"checkpoint {folder} was {wrong}")


def check_data(run: Path, data: Mapping[str, str | None]) -> None:
    """UsageError if the newest checkpoint of ``run`` was trained on other data than ``data`` (see ``train.identity``)."""
    for folder in committed_checkpoints(run)[-1:]:
        state = read_state(folder)
        changed = [key for key, now in data.items() if state.get(key) not in (None, now)]
        if changed:
            raise UsageError(
                f"resume=true, but checkpoint {folder} was trained on other data than data.train names now ("
                f"{'another split' if changed == ['data_split'] else 'its manifest.json is another'}): name those of "
                "before, or start a new run"
            )
