"""Reading tensors from files and folders, without ever executing what is in them."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from essa_dist.errors import WeightsError

NAMES = ("model.safetensors", "pytorch_model.bin")
"""A folder's weights, in order of preference; with ``.index.json`` behind it, a list of parts."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file, or of a folder with one, sharded or not; names as they are there.

    Dictionaries within a dictionary are flattened (``teacher`` of ``{"teacher": {...}}`` becomes a prefix), all but
    tensors is left out. torch files are read with ``weights_only=True``, never as plain pickle, and mapped rather
    than copied. Raises WeightsError naming the file when it is missing, damaged or holds other objects than tensors.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    try:
        held: Any = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(f"weights file {path} can't be read: {_first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile file provokes
        raise WeightsError(
            f"weights file {path} is not a plain tensor file and was not loaded: {_why(error)}"
        ) from error
    state = _flat(held) if isinstance(held, dict) else {}
    if not state:
        raise WeightsError(f"weights file {path} does not hold a dictionary of tensors")
    return state


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(_harmless()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of before torch 1.6 can't be mapped
            return torch.load(path, map_location="cpu", weights_only=True)


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What checkpoints hold beside tensors and only stores values: MAE's arguments, NumPy's numbers."""
    scalar: Any = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),  # as written by NumPy 1
        (scalar, "numpy._core.multiarray.scalar"),
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    ]


def _flat(held: dict[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in held.items():
        if isinstance(value, Tensor):
            state[f"{prefix}{name}"] = value
        elif isinstance(value, dict) and isinstance(name, str):  # an optimizer's states have numbers
            state |= _flat(value, f"{prefix}{name}.")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _why(error: Exception) -> str:
    """The object that a pickle asked for; torch's own text recommends to load it all the same."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked is None:  # of a file that is no pickle torch may tell just a number
        return f"it is not a file that torch.save wrote ({_first_line(error)})"
    return (
        f"it holds a {asked.group(1)}; save its tensors alone, as safetensors or with torch.save(state_dict)"
    )


def weights_file(folder: Path) -> Path | None:
    """The file of a folder that holds its weights, or lists the parts that do; None where there is none."""
    candidates = [folder / (name + end) for name in NAMES for end in ("", ".index.json")]
    return next((path for path in candidates if path.is_file()), None)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    path = weights_file(folder)
    if path is None:
        raise WeightsError(f"weights folder {folder} has no {' or '.join(NAMES)}, whole or in parts")
    if not path.name.endswith(".index.json"):
        return read_state(path)
    index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    parts = {name: read_state(folder / Path(name).name) for name in sorted(set(index.values()))}
    state = {name: tensor for part in parts.values() for name, tensor in part.items()}
    if missing := sorted(index.keys() - state.keys()):
        raise WeightsError(
            f"{path} lists {missing[0]} and {len(missing) - 1} more tensors that its parts don't hold"
        )
    return state
