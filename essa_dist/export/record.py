"""What a run folder says about itself, for the model card."""

import json
import logging
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from essa_dist.runfolder import CONFIG, EVALUATION, SUMMARY, result_checkpoint

logger = logging.getLogger(__name__)

FP32 = 4  # bytes
TRUNK = "backbone."


class Record(NamedTuple):
    """Every part may be empty; all are for a model that is no run."""

    config: dict[str, Any]
    state: dict[str, Any]
    """state.json of the complete checkpoint that is the run's result"""
    summary: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    """by file name"""

    def section(self, name: str) -> dict[str, Any]:
        """One owner's settings; empty where there are none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}


def read_record(run: Path) -> Record:
    """Read the record of ``run``; a part that is absent or can't be read is empty, and the card says unknown."""
    checkpoint = result_checkpoint(run)
    config = OmegaConf.to_container(OmegaConf.load(run / CONFIG))
    return Record(
        config={str(name): value for name, value in config.items()} if isinstance(config, dict) else {},
        state=_read_json(checkpoint / "state.json") if checkpoint else {},
        summary=_read_json(run / SUMMARY),
        evaluations={path.stem: _read_json(path) for path in sorted((run / EVALUATION).glob("*.json"))},
    )


def adapter_bytes(run: Path, branch: str, plain_buffers: Container[str]) -> int | None:
    """What an adapter alone takes: the trunk's trained tensors of one branch in fp32, and the adapter's buffers.

    ``plain_buffers``: buffers of the trunk without an adapter, which are not counted. None where the
    checkpoint lacks the files.
    """
    checkpoint = result_checkpoint(run)
    files = [checkpoint / f"{name}.safetensors" for name in (branch, "buffers")] if checkpoint else []
    if not files or not all(file.is_file() for file in files):
        return None
    trained, buffers = (_of_trunk(load_file(file)) for file in files)
    own = [tensor for name, tensor in buffers.items() if name not in plain_buffers]
    return FP32 * sum(t.numel() for t in trained.values()) + sum(t.nbytes for t in own)


def _of_trunk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(TRUNK): t for n, t in tensors.items() if n.startswith(TRUNK)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s can't be read (%s): the model card goes without it", path, error)
        return {}
    return found if isinstance(found, dict) else {}
