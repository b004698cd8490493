"""What a run has saved, read back: refused, in one line, where it is no longer what was written.

Nothing in a checkpoint can execute, and only the files that are asked for are opened.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from yaml import YAMLError

from essa_dist.adapters import AdapterConfig
from essa_dist.backbones import BackboneConfig
from essa_dist.backbones.weights import file_sha256
from essa_dist.errors import UsageError
from essa_dist.heads.pooled import PooledHeadConfig
from essa_dist.runfolder import CHECKPOINTS, CONFIG, MARKER, committed_checkpoints, is_run, result_checkpoint
from essa_dist.settings import Config, load

STATE = "state.json"
FILES = ("student", "teacher", "buffers", "optimizer")
NEEDED = ("step", "trunk_sha256", "weights_source")
"""Keys of the state without which nothing can go on."""


class ModelSettings(Config):
    """What must be known of a run's settings to build its model."""

    backbone: BackboneConfig
    adapter: AdapterConfig
    seed: int
    model: str = ""
    """What the run started from in place of ``backbone``."""
    keep_adapter: bool = False
    """Whether the adapter of ``model`` stayed what it was, under the run's own."""
    task: Any = None
    """Of a supervised run, which has no teacher."""
    head: PooledHeadConfig = PooledHeadConfig()
    """Of a supervised run: it may leave out the trunk's final norm, which then wasn't trained."""

    @property
    def branch(self) -> str:
        """Whose tensors are the run's result."""
        return "teacher" if self.task is None else "student"


def read_config(run: Path) -> dict[str, Any]:
    """The resolved settings of a run, as they are written. Raises UsageError where they can't be read."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(run / CONFIG))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise _unusable(run, " ".join(str(error).split())) from error
    if not isinstance(config, dict) or not config:
        raise _unusable(run, "no settings are in it")
    return {str(name): value for name, value in config.items()}


def model_settings(run: Path) -> ModelSettings:
    """Raises UsageError where they can't be read, or mean nothing to this version."""
    config = read_config(run)
    try:
        return load(ModelSettings, {key: config[key] for key in ModelSettings.model_fields if key in config})
    except UsageError as error:
        raise _unusable(run, str(error).splitlines()[0]) from error


def _unusable(run: Path, why: str) -> UsageError:
    return UsageError(f"{run / CONFIG} tells no model ({why}): put back the file that the run has written")


def find_run(path: Path) -> Path:
    """The run that ``path`` names: its folder, or one of its checkpoints."""
    inside = path.parent.name == CHECKPOINTS and is_run(path.parents[1])
    return path.parents[1] if inside else path


def find_checkpoint(path: Path) -> Path:
    """The complete checkpoint that ``path`` names, or that is the result of the run: the newest, or its canary's best.

    Raises UsageError where there is none.
    """
    run = find_run(path)
    if not is_run(run):
        raise UsageError(
            f"{path} is neither a run folder ({CONFIG} and {CHECKPOINTS}/) nor a PEFT folder (adapter_config.json)"
        )
    found = result_checkpoint(run) if run == path else path
    if found is None:
        raise UsageError(
            f"run {run} has no complete checkpoint: let it reach one (checkpoint.every), or resume it"
        )
    if not (found / MARKER).is_file():
        there = ", ".join(folder.name for folder in committed_checkpoints(run)) or "none"
        raise UsageError(f"{found} is no complete checkpoint of run {run}: there is {there}")
    return found


def tensor_file(folder: Path, file: str) -> Path:
    """Where one of FILES lies in a checkpoint."""
    return folder / f"{file}.safetensors"


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint. Raises UsageError when it is not what was written."""
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"{STATE} can't be read ({error})") from error
    lacking = [key for key in NEEDED if key not in state] if isinstance(state, dict) else list(NEEDED)
    if lacking:
        raise damaged(folder, f"{STATE} lacks {', '.join(lacking)}")
    files = state.get("files", {})
    known = isinstance(files, dict) and all(
        isinstance(file, dict) and {"bytes", "sha256"} <= file.keys() for file in files.values()
    )
    if type(state["step"]) is not int or not known:
        raise damaged(folder, f"{STATE} is not as it was written")
    return state  # type: ignore[no-any-return]


def check_files(folder: Path, state: Mapping[str, Any], files: Sequence[str] = FILES) -> None:
    """UsageError unless the files are byte for byte what was written; checkpoints of before had no checksums.

    0.7 s for 1 GB, where the processor has instructions for SHA-256.
    """
    for file in files:
        path = tensor_file(folder, file)
        if not path.is_file():
            raise damaged(folder, f"{path.name} is missing")
        written = state.get("files", {}).get(path.name)
        if not written:
            continue
        if (size := path.stat().st_size) != written["bytes"]:
            raise damaged(folder, f"{path.name} has {size} bytes, {written['bytes']} were written")
        if file_sha256(path) != written["sha256"]:
            raise damaged(folder, f"{path.name} has another checksum than what was written")


def read_tensors(folder: Path, state: Mapping[str, Any], *files: str) -> dict[str, Tensor]:
    """The tensors of some of a checkpoint's files, by name. Raises UsageError when one is not what was written."""
    check_files(folder, state, files)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(tensor_file(folder, file))
        except (SafetensorError, OSError) as error:
            raise damaged(folder, f"{file}.safetensors can't be read ({error})") from error
    return tensors


def damaged(folder: Path, what: str) -> UsageError:
    """A complete checkpoint that is no longer what was written: never passed over in silence."""
    if not (folder / MARKER).is_file():  # which goes first
        return UsageError(
            f"checkpoint {folder} was deleted while it was read, its run having newer ones: ask again"
        )
    earlier = [other for other in sorted(folder.parent.glob("step_????????")) if other < folder]
    earlier = [other for other in earlier if (other / MARKER).is_file()]
    way = f"go on from {earlier[-1].name}" if earlier else "begin anew: there is no earlier one"
    return UsageError(
        f"checkpoint {folder} is damaged: {what}; put the file back, or delete the folder to {way}"
    )
