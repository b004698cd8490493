"""DINOv2's objective: DINO on class tokens, iBOT on masked patches, KoLeo on class tokens.

Source: DINOv2, arXiv:2304.07193; checked term by term against values of the official code.
Shapes: B images, L local crops, N patches of a global crop, M masked patches, C trunk width, K prototypes.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from essa_dist.adapters.branches import Branches
from essa_dist.backbones.vit import Backbone, Features
from essa_dist.data.batch import Batch
from essa_dist.heads import DINOHead, HeadConfig
from essa_dist.losses.centering import CENTERINGS
from essa_dist.losses.cross_entropy import dino_loss, ibot_loss
from essa_dist.losses.koleo import koleo_loss
from essa_dist.objectives.diagnostics import prototype_entropy, rankme, row_entropy
from essa_dist.settings import Config


class DINOv2Config(Config):
    dino_weight: float = Field(1.0, ge=0)
    """Weight of the class-token cross-entropy, over all pairs of different crops."""
    ibot_weight: float = Field(1.0, ge=0)
    """Weight of the masked-patch cross-entropy; at 0 no patch is masked."""
    koleo_weight: float = Field(0.1, ge=0)
    """Weight of the uniformity term, summed over the two global crops."""
    centering: Literal["softmax", "sinkhorn"] = "softmax"
    """How teacher logits become targets: softmax with a running centre, or Sinkhorn-Knopp (wants large batches)."""
    student_temp: float = Field(0.1, gt=0)
    """Temperature of the student's softmax."""
    head: HeadConfig = HeadConfig()
    """Projection head of class tokens."""
    ibot_head: Literal["shared"] | HeadConfig = "shared"
    """Projection head of masked patches: the same one, or one of its own."""


class DINOv2Objective(nn.Module):
    """One module with both branches of trunk and heads: what DDP, ZeRO or FSDP2 wraps.

    ``branches`` is made last, when the adapter is in place; build through ``engine.build``.
    """

    def __init__(self, backbone: Backbone, config: DINOv2Config, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.dino_head = DINOHead(backbone.embed_dim, config.head)
        centering = CENTERINGS[config.centering]
        self.dino_targets = centering(config.head.prototypes)
        self.ibot_head: DINOHead | None = None
        ibot_config = config.head
        if isinstance(config.ibot_head, HeadConfig):
            ibot_config = config.ibot_head
            self.ibot_head = DINOHead(backbone.embed_dim, ibot_config)
        self.ibot_targets = centering(ibot_config.prototypes)
        self.branches = Branches(self, compute_dtype=compute_dtype)

    def forward(self, batch: Batch, *, teacher_temp: float, diagnose: bool = False) -> dict[str, Tensor]:
        """Losses of one batch of normalised crops; ``total`` is the one to minimise, the others add up to it.

        Also moves the running centres. With ``diagnose`` the dict gains detached measures of collapse.
        """
        masks = batch.masks.flatten(0, 1) if self.config.ibot_weight > 0 else None
        n_images = batch.global_crops.shape[1]
        with self.branches.teacher():
            teacher = self.backbone(batch.global_crops.flatten(0, 1))
            dino_targets, ibot_targets = self._targets(teacher, masks, teacher_temp)

        student = self.backbone(batch.global_crops.flatten(0, 1), masks)
        losses = self._dino(student, batch.local_crops, dino_targets.unflatten(0, (2, n_images)))
        if masks is not None and ibot_targets is not None:
            losses["ibot"] = self._ibot(student, masks, ibot_targets)
        if self.config.koleo_weight > 0:
            views = student.cls.chunk(2)  # apart: the two views of an image would be each other's neighbours
            losses["koleo"] = self.config.koleo_weight * (koleo_loss(views[0]) + koleo_loss(views[1]))
        losses["total"] = torch.stack(list(losses.values())).sum()
        if diagnose:
            losses["teacher_entropy"] = row_entropy(dino_targets)
            losses["prototype_entropy"] = prototype_entropy(dino_targets)
            losses["rankme"] = rankme(teacher.cls)
        return losses

    def _targets(self, teacher: Features, masks: Tensor | None, temp: float) -> tuple[Tensor, Tensor | None]:
        """Distributions of the teacher: [2 * B, K] of class tokens and [M, K] of the patches the student misses."""
        dino = self.dino_targets(self.dino_head(teacher.cls), temp=temp)
        if masks is None:
            return dino, None
        return dino, self.ibot_targets(self._patch_head(teacher.patches[masks]), temp=temp)

    def _patch_head(self, patches_MC: Tensor) -> Tensor:
        logits: Tensor = (self.ibot_head or self.dino_head)(patches_MC)
        return logits

    def _dino(self, student: Features, local_crops: Tensor, targets_2BK: Tensor) -> dict[str, Tensor]:
        """Mean over the 2 + 2 L pairs of different crops, reported as its global and its local part."""
        n_local, n_images = local_crops.shape[:2]
        temp, scale = self.config.student_temp, self.config.dino_weight / (2 + 2 * n_local)
        global_SBK = self.dino_head(student.cls).unflatten(0, (2, n_images))
        losses = {"dino_global": scale * dino_loss(global_SBK, targets_2BK, temp=temp, same_crops=True)}
        if n_local:
            local = self.backbone(local_crops.flatten(0, 1))
            local_SBK = self.dino_head(local.cls).unflatten(0, (n_local, n_images))
            losses["dino_local"] = scale * dino_loss(local_SBK, targets_2BK, temp=temp, same_crops=False)
        return losses

    def _ibot(self, student: Features, masks: Tensor, targets_MK: Tensor) -> Tensor:
        """The student predicts, where its patches were masked, what the teacher saw there."""
        masked_per_crop = masks.sum(dim=1, keepdim=True).clamp_min(1)
        weight_M = (1.0 / masked_per_crop).expand_as(masks)[masks]
        logits_MK = self._patch_head(student.patches[masks])
        loss = ibot_loss(logits_MK, targets_MK, weight_M, temp=self.config.student_temp, n_images=len(masks))
        return self.config.ibot_weight * loss
