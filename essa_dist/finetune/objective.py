"""Trunk, adapter and a head for a labelled task, with one branch: the student.

Shapes: B images, H x W pixels, K outputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from essa_dist.adapters.branches import Branches
from essa_dist.backbones import Backbone
from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.heads.pooled import PooledHead
from essa_dist.heads.segmentation import DECODERS, Decoder, decode
from essa_dist.objectives import Objective
from essa_dist.tasks import Task


class Supervised(Objective):
    """What supervised adaptation trains; build it when the adapter is in place."""

    units: ClassVar[frozenset[str]] = frozenset(decoder.__name__ for _, decoder in DECODERS.values())

    def __init__(
        self, backbone: Backbone, head: PooledHead | Decoder, task: Task, *, compute_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.task = backbone, head, task
        backbone.mask_token.requires_grad_(False)  # nothing is masked, and DDP would wait for its gradient
        self.branches = Branches(self, compute_dtype=compute_dtype, teacher=False)

    def losses(self, batch: LabelledBatch, *, diagnose: bool = False, **options: Any) -> dict[str, Tensor]:
        """``total``: the task's loss, with that of auxiliary heads."""
        if isinstance(self.head, Decoder):
            decoded = decode(self.backbone, self.head, batch.images)
            return {
                "total": self.head.total_loss(decoded, lambda logits: self.task.loss(logits, batch.targets))
            }
        return {"total": self.task.loss(self.logits(batch.images), batch.targets)}

    def logits(self, images: Tensor) -> Tensor:
        """[B, K], or [B, K, H, W] of a segmentation, of normalised ``images`` [B, 3, H, W]; fp32."""
        return logits_of(self.backbone, self.head, images)


def logits_of(backbone: Backbone, head: nn.Module, images: Tensor) -> Tensor:
    """fp32 logits of normalised ``images`` in the precision that the trunk computes in."""
    if isinstance(head, Decoder):
        return decode(backbone, head, images).logits.float()
    with nullcontext() if getattr(head, "trunk_norm", True) else _without_norm(backbone):
        tokens = backbone(images)
    logits: Tensor = head(tokens)
    return logits.float()


@contextmanager
def _without_norm(backbone: Backbone) -> Iterator[None]:
    """Inside, the trunk has no final norm; outside it keeps it, with its names, for all else that loads the model."""
    norm, backbone.vit.norm = backbone.vit.norm, nn.Identity()
    try:
        yield
    finally:
        backbone.vit.norm = norm


class Predict:
    """Work for the objective's ``forward``: logits without gradients, dropout and stochastic depth."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, objective: Supervised) -> Tensor:
        training = objective.training
        objective.eval()
        try:
            with torch.no_grad():
                return objective.logits(self.images)
        finally:
            objective.train(training)
