"""One update in micro-batches, equal to the update in one batch.

Cross-entropies are means over images, so their micro-batches need not know of each other, and softmax centering keeps
its centre until the update is made. Two terms compare images: Sinkhorn-Knopp balances the prototypes over all rows,
KoLeo looks for neighbours among all images. For them a survey precedes the micro-batches, without gradients:

- Sinkhorn-Knopp needs one number per prototype (:func:`~essa_dist.losses.centering.column_sums`). The survey makes the
  teacher's pass for all micro-batches, which they then need not make, and keeps the rows that enter the heads:
  class tokens and masked patches. What it adds are three passes of the heads over these rows.
- KoLeo needs all class tokens of the student, so the survey makes one more pass of the student over the global crops
  and keeps the gradient of KoLeo by each token. In a micro-batch the loss is linear in its tokens with that gradient,
  and the sum over micro-batches has the gradient of the whole. Source of the idea: GradCache, arXiv:2101.06983.

Shapes: B images of a micro-batch, M its masked patches, C trunk width, K prototypes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from essa_dist.data.batch import Batch
from essa_dist.losses.koleo import koleo_and_gradient

if TYPE_CHECKING:
    from essa_dist.objectives.dinov2 import DINOv2Objective


class TeacherRows(NamedTuple):
    """What the teacher hands to its heads."""

    cls: Tensor
    """[2 * B, C]"""
    masked: Tensor | None
    """[M, C]: the patches that the student does not see; None: nothing is masked"""


@dataclass(frozen=True)
class Known:
    """What a micro-batch knows of its whole update, from the survey."""

    micro_batches: int
    """How many the update has."""
    seed: int
    """Of the student's dropout and stochastic depth on the global crops, which it sees twice."""
    teacher: TeacherRows | None = None
    """Its rows of the teacher; None: the survey had no need of them."""
    dino_columns: Tensor | None = None
    """[K] for ``dino_targets``."""
    ibot_columns: Tensor | None = None
    """[K] for ``ibot_targets``."""
    koleo: Tensor | None = None
    """KoLeo of the update, a scalar without its weight; None: KoLeo looks at each micro-batch alone."""
    koleo_gradient: Tensor | None = None
    """[2 * B, C] fp32, of ``koleo`` by this micro-batch's class tokens."""


@dataclass(frozen=True)
class Survey:
    """Work for the objective's ``forward``: what each of the micro-batches has to know."""

    batches: Sequence[Batch]
    teacher_temp: float

    def __call__(self, objective: "DINOv2Objective") -> list[Known]:
        seeds = torch.randint(2**62, (len(self.batches),)).tolist()
        known = [Known(len(self.batches), seed) for seed in seeds]
        if objective.dino_targets.surveys:
            known = self._teacher(objective, known)
        if objective.config.koleo_weight > 0 and objective.config.koleo_over == "update":
            known = self._koleo(objective, known)
        return known

    def _teacher(self, objective: "DINOv2Objective", known: list[Known]) -> list[Known]:
        with objective.branches.teacher():
            rows = [objective.teacher_rows(batch) for batch in self.batches]
            dino, ibot = objective.target_columns(rows, self.teacher_temp)
        pairs = zip(known, rows, strict=True)
        return [replace(k, teacher=r, dino_columns=dino, ibot_columns=ibot) for k, r in pairs]

    def _koleo(self, objective: "DINOv2Objective", known: list[Known]) -> list[Known]:
        views = [
            objective.student_globals(batch, seed=k.seed).cls.chunk(2)
            for batch, k in zip(self.batches, known, strict=True)
        ]
        one, other = (koleo_and_gradient(torch.cat(view)) for view in zip(*views, strict=True))
        value = one[0] + other[0]
        parts = zip(known, one[1].chunk(len(known)), other[1].chunk(len(known)), strict=True)
        return [replace(k, koleo=value, koleo_gradient=torch.cat([a, b])) for k, a, b in parts]


def prepare(
    objective: "DINOv2Objective",
    model: Callable[..., Any],  # the objective as it was wrapped
    batch: Batch,
    micro_batches: int,
    *,
    teacher_temp: float,
) -> list[tuple[Batch, Known | None]]:
    """Cut ``batch`` into equal parts, each with what it has to know; None where it need not know anything.

    Call ``model(part, teacher_temp=..., known=known)`` for each, and ``objective.settle`` behind the update.
    """
    parts = list(batch.split(micro_batches))
    if micro_batches == 1 or not objective.surveys:
        return [(part, None) for part in parts]
    with torch.no_grad():
        known: list[Known] = model(Survey(parts, teacher_temp))
    return list(zip(parts, known, strict=True))
