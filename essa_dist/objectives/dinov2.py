"""DINOv2's objective: DINO on class tokens, iBOT on masked patches, KoLeo on class tokens.

Source: DINOv2, arXiv:2304.07193; checked term by term against values of the official code.
Shapes: B images, L local crops, N patches of a global crop, M masked patches, C trunk width, K prototypes.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from essa_dist.adapters.branches import Branches
from essa_dist.backbones.packed import Group
from essa_dist.backbones.vit import Backbone, Features
from essa_dist.data.batch import Batch
from essa_dist.heads import DINOHead, HeadConfig
from essa_dist.losses.centering import CENTERINGS, column_sums
from essa_dist.losses.cross_entropy import dino_loss, ibot_loss
from essa_dist.losses.koleo import koleo_loss
from essa_dist.objectives.accumulation import Known, TeacherRows, prepare
from essa_dist.objectives.cross_entropies import Targets, cross_entropies, target_columns, teacher_targets
from essa_dist.objectives.diagnostics import prototype_entropy, rankme, row_entropy
from essa_dist.objectives.interface import Objective, StepValues
from essa_dist.settings import Config


class DINOv2Config(Config):
    dino_weight: float = Field(1.0, ge=0)
    """Weight of the class-token cross-entropy, over all pairs of different crops."""
    ibot_weight: float = Field(1.0, ge=0)
    """Weight of the masked-patch cross-entropy; at 0 no patch is masked."""
    koleo_weight: float = Field(0.1, ge=0)
    """Weight of the uniformity term, summed over the two global crops."""
    koleo_over: Literal["update", "micro_batch"] = "update"
    """Where neighbours are sought if accumulate > 1: update costs one more pass of the student over the global crops, 15 % of a step."""
    centering: Literal["softmax", "sinkhorn"] = "softmax"
    """How teacher logits become targets: softmax with a running centre, or Sinkhorn-Knopp (wants large batches)."""
    student_temp: float = Field(0.1, gt=0)
    """Temperature of the student's softmax."""
    head: HeadConfig = HeadConfig()
    """Projection head of class tokens."""
    ibot_head: Literal["shared"] | HeadConfig = "shared"
    """Projection head of masked patches: the same one, or one of its own."""


class DINOv2Objective(Objective):
    """One module with both branches of trunk and heads; build through ``engine.build``."""

    units: ClassVar[frozenset[str]] = frozenset({DINOHead.__name__})
    sliced: bool = False
    """Whether cross-entropies are computed as in :mod:`.cross_entropies`: never all logits at a time."""

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
        self._freeze_what_no_loss_reaches()
        self.branches = Branches(self, compute_dtype=compute_dtype)

    def _freeze_what_no_loss_reaches(self) -> None:
        """DDP would wait for its gradients, and weight decay would move it."""
        if self.config.ibot_weight == 0:
            self.backbone.mask_token.requires_grad_(False)
            self.ibot_head = None
        shared = self.ibot_head is None and self.config.ibot_weight > 0
        if self.config.dino_weight == 0 and not shared:
            self.dino_head.requires_grad_(False)

    @property
    def surveys(self) -> bool:
        """Whether a micro-batch has to know of the others of its update; see :mod:`.accumulation`."""
        koleo = self.config.koleo_weight > 0 and self.config.koleo_over == "update"
        return koleo or self.dino_targets.surveys

    def micro_batches(
        self, model: Callable[..., Any], batch: Batch, n: int, values: StepValues
    ) -> list[tuple[Batch, dict[str, Any]]]:
        """See :func:`~.accumulation.prepare`."""
        temp = values.teacher_temp
        parts = prepare(self, model, batch, n, teacher_temp=temp)
        return [(part, {"teacher_temp": temp, "known": known}) for part, known in parts]

    def losses(
        self, batch: Batch, *, teacher_temp: float, known: Known | None = None, diagnose: bool = False
    ) -> dict[str, Tensor]:
        """Losses of one batch of normalised crops; ``total`` is the one to minimise, the others add up to it.

        ``known`` is what :func:`~.accumulation.prepare` found for a micro-batch; its losses are such that their mean
        over the update is the loss of the update. Running centres wait for :meth:`settle`. With ``diagnose`` the
        dict gains detached measures of collapse.
        """
        with self.branches.teacher():
            teacher = (known and known.teacher) or self.teacher_rows(batch)
            make = teacher_targets if self.sliced else DINOv2Objective._targets
            targets = make(self, teacher, teacher_temp, known)

        student, local = self.student_crops(batch, seed=known.seed if known else None)
        compare = cross_entropies if self.sliced else DINOv2Objective._cross_entropies
        losses, total = compare(self, student, local, batch.masks.flatten(0, 1), targets)
        if self.config.koleo_weight > 0:
            losses["koleo"] = self.config.koleo_weight * self._koleo(student, known)
            total = total + losses["koleo"]
        losses["total"] = total
        if diagnose:
            losses["teacher_entropy"] = row_entropy(targets.dino)
            losses["prototype_entropy"] = prototype_entropy(targets.dino)
            losses["rankme"] = rankme(teacher.cls)
        return losses

    def settle(self, *, applied: bool) -> None:
        """End an update: move the running centres, or forget its logits where it was not ``applied``. On all processes."""
        self.dino_targets.settle(applied=applied)
        self.ibot_targets.settle(applied=applied)

    def teacher_rows(self, batch: Batch) -> TeacherRows:
        """What the teacher's heads are to see; to be called inside ``branches.teacher()``."""
        features = self.backbone(batch.global_crops.flatten(0, 1))
        masked = features.patches[batch.masks.flatten(0, 1)] if self.config.ibot_weight > 0 else None
        return TeacherRows(features.cls, masked)

    def student_globals(self, batch: Batch, *, seed: int | None) -> Features:
        """The student on the global crops, with their masks; dropout as ``seed`` says, or by the global state."""
        return self.backbone.each(self._globals(batch, seed))[0]

    def student_crops(self, batch: Batch, *, seed: int | None) -> tuple[Features, Features | None]:
        """The student on the global crops, as :meth:`student_globals`, and on the local ones, where there are any."""
        if not len(batch.local_crops):
            return self.student_globals(batch, seed=seed), None
        student, local = self.backbone.each(
            self._globals(batch, seed), Group(batch.local_crops.flatten(0, 1))
        )
        return student, local

    def _globals(self, batch: Batch, seed: int | None) -> Group:
        masks = batch.masks.flatten(0, 1) if self.config.ibot_weight > 0 else None
        return Group(batch.global_crops.flatten(0, 1), masks, seed)

    def target_columns(self, rows: Sequence[TeacherRows], temp: float) -> tuple[Tensor, Tensor | None]:
        """Sinkhorn-Knopp's columns [K] over all ``rows``, of class tokens and of patches. Logits are made anew in each
        iteration: a head's pass costs little beside the trunk's, and K numbers for every row are much to keep.
        """
        if self.sliced:
            return target_columns(self, rows, temp)
        dino = column_sums(lambda: (self.dino_head(r.cls) for r in rows), temp=temp)
        if self.config.ibot_weight == 0:
            return dino, None
        return dino, column_sums(lambda: (self._patch_head(r.masked) for r in rows), temp=temp)

    def _targets(self, teacher: TeacherRows, temp: float, known: Known | None) -> Targets:
        """Distributions of the teacher, [M, K] of the patches the student misses."""
        dino_columns, ibot_columns = (known.dino_columns, known.ibot_columns) if known else (None, None)
        dino = self.dino_targets(self.dino_head(teacher.cls), temp=temp, columns_K=dino_columns)
        if teacher.masked is None:
            return Targets(dino, None)
        logits_MK = self._patch_head(teacher.masked)
        return Targets(dino, self.ibot_targets(logits_MK, temp=temp, columns_K=ibot_columns))

    def _patch_head(self, patches_MC: Tensor | None) -> Tensor:
        logits: Tensor = (self.ibot_head or self.dino_head)(patches_MC)
        return logits

    def _cross_entropies(
        self, student: Features, local: Features | None, masks: Tensor, targets: Targets
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms by name, and their sum."""
        losses = self._dino(student, local, targets.dino.unflatten(0, (2, -1)))
        if isinstance(targets.ibot, Tensor):
            losses["ibot"] = self._ibot(student, masks, targets.ibot)
        return losses, torch.stack(list(losses.values())).sum()

    def _dino(self, student: Features, local: Features | None, targets_2BK: Tensor) -> dict[str, Tensor]:
        """Mean over the 2 + 2 L pairs of different crops, reported as its global and its local part."""
        n_images = targets_2BK.shape[1]
        n_local = 0 if local is None else len(local.cls) // n_images
        temp, scale = self.config.student_temp, self.config.dino_weight / (2 + 2 * n_local)
        global_SBK = self.dino_head(student.cls).unflatten(0, (2, n_images))
        losses = {"dino_global": scale * dino_loss(global_SBK, targets_2BK, temp=temp, same_crops=True)}
        if local is not None:
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

    def _koleo(self, student: Features, known: Known | None) -> Tensor:
        if known is None or known.koleo is None or known.koleo_gradient is None:
            views = student.cls.chunk(2)  # apart: the two views of an image would be each other's neighbours
            return koleo_loss(views[0]) + koleo_loss(views[1])
        tokens = student.cls.float()
        # Zero, with the gradient of the whole update; the mean over micro-batches takes the factor back.
        change = ((tokens - tokens.detach()) * known.koleo_gradient).sum()
        return known.koleo + known.micro_batches * change
