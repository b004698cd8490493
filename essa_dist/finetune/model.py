"""A model that `essa finetune` has trained, ready to predict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from essa_dist import runfolder
from essa_dist.backbones import Backbone
from essa_dist.backbones.weights import misfits
from essa_dist.errors import UsageError
from essa_dist.export.models import run_base, with_adapter
from essa_dist.export.saved import find_checkpoint, find_run, read_config, read_state, read_tensors
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.finetune.head import make_head
from essa_dist.finetune.objective import logits_of
from essa_dist.heads.pooled import PooledHead
from essa_dist.heads.segmentation import Decoder
from essa_dist.settings import load
from essa_dist.tasks import Task, TaskConfig, make_task


@dataclass(frozen=True)
class FinetunedModel:
    """In eval mode, fp32, on the CPU, nothing trainable, the adapter merged where it can be."""

    backbone: Backbone
    head: PooledHead | Decoder
    task: Task
    classes: tuple[str, ...]
    image_size: int
    """Pixels, square, of what it was trained on."""
    config: FinetuneConfig
    checkpoint: Path

    def to(self, device: torch.device | str) -> "FinetunedModel":
        """Moved, in place."""
        self.backbone.to(device)
        self.head.to(device)
        return self

    def logits(self, images: Tensor) -> Tensor:
        """[B, K], or [B, K, H, W] of a segmentation, of normalised ``images`` [B, 3, H, W]; fp32."""
        return logits_of(self.backbone, self.head, images)


def load_finetuned(ref: str) -> FinetunedModel:
    """The result of a run of `essa finetune`: its best checkpoint, or the one that ``ref`` names.

    Raises UsageError where it is no such run or damaged, WeightsError where what it started from is another by now.
    """
    path = Path(ref).expanduser()
    run = find_run(path)
    if not runfolder.is_run(run) or "task" not in read_config(run):
        raise UsageError(f"run={ref} is no run of essa finetune: give its folder")
    checkpoint = find_checkpoint(path)
    config, state = load(FinetuneConfig, run / runfolder.CONFIG), read_state(checkpoint)
    task = _task(state, checkpoint)
    backbone = with_adapter(run_base(run), str(path))
    head = make_head(backbone, task, config)
    tensors = _of_head(read_tensors(checkpoint, state, "student", "buffers"))
    own = head.state_dict()
    if wrong := misfits(own, tensors, here="this model"):
        raise UsageError(f"checkpoint {checkpoint} does not fit the head of its settings: {wrong}")
    head.load_state_dict(tensors)
    backbone.eval().requires_grad_(False)
    head.eval().requires_grad_(False)
    return FinetunedModel(
        backbone, head, task, tuple(state["classes"]), state["image_size"], config, checkpoint
    )


def _task(state: dict[str, Any], checkpoint: Path) -> Task:
    try:
        config = TypeAdapter(TaskConfig).validate_python(state["task"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"checkpoint {checkpoint} is of a task that this version can't read "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}): use the version that trained it "
            f"({state.get('versions', {}).get('essa-dist', 'unknown')}), or train again"
        ) from error
    return make_task(config, state["classes"], None)


def _of_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("head."): t for name, t in tensors.items() if name.startswith("head.")}
