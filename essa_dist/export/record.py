"""What a run folder says about itself, for the model card."""

import json
import logging
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from essa_dist.export.saved import STATE, find_run, read_config, tensor_file
from essa_dist.runfolder import EVALUATION, SUMMARY

logger = logging.getLogger(__name__)

FP32 = 4  # bytes
TRUNK = "backbone."


class Record(NamedTuple):
    """Every part may be empty; all are for a model that is no run."""

    config: dict[str, Any]
    state: dict[str, Any]
    """state.json of the checkpoint"""
    summary: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    """by file name"""
    checkpoint: Path | None = None

    def section(self, name: str) -> dict[str, Any]:
        """One owner's settings; empty where there are none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}


def read_record(checkpoint: Path) -> Record:
    """What is recorded of a checkpoint and its run. Raises UsageError for settings that can't be read; any other part that
    is absent or can't be read is empty, and the card says unknown.
    """
    run = find_run(checkpoint)
    return Record(
        config=read_config(run),
        state=_read_json(checkpoint / STATE),
        summary=_read_json(run / SUMMARY),
        evaluations={path.stem: _read_json(path) for path in sorted((run / EVALUATION).glob("*.json"))},
        checkpoint=checkpoint,
    )


def adapter_bytes(checkpoint: Path, branch: str, plain_buffers: Container[str]) -> int | None:
    """What an adapter alone takes: the trunk's trained tensors of one branch in fp32, and the adapter's buffers.

    ``plain_buffers``: buffers of the trunk without an adapter, which are not counted. None where the
    checkpoint lacks the files.
    """
    files = [tensor_file(checkpoint, name) for name in (branch, "buffers")]
    if not all(file.is_file() for file in files):
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
