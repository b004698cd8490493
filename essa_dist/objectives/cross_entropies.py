"""DINO's and iBOT's cross-entropies, each head entered once for all its rows, and never all of its logits at a time.

``DINOv2Objective._targets``, ``_dino`` and ``_ibot`` are the same in the plain form, and the oracle of its tests.
Shapes: B images, L local crops, M masked patches, C trunk width, K prototypes.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from essa_dist.backbones.vit import Features
from essa_dist.heads.dino import Apart
from essa_dist.losses.centering import column_sums
from essa_dist.losses.prototypes import PIECE, Given, Made, prototype_loss
from essa_dist.losses.slices import spans
from essa_dist.objectives.accumulation import Known, TeacherRows

if TYPE_CHECKING:
    from essa_dist.objectives.dinov2 import DINOv2Objective


Work = tuple[Tensor, Tensor, Given | Made]
"""Features [N, C], the factors [N] of their losses, and what they are to predict."""


class Targets(NamedTuple):
    """What the student is to predict."""

    dino: Tensor
    """[2 * B, K] fp32, of the class tokens of both global crops."""
    ibot: Made | Tensor | None
    """Of the M masked patches, in the plain form [M, K]; None: nothing is masked."""


def teacher_targets(
    objective: "DINOv2Objective", teacher: TeacherRows, temp: float, known: Known | None
) -> Targets:
    """To be called inside ``branches.teacher()``."""
    dino, ibot = _teacher_heads(objective, teacher)
    dino_columns, ibot_columns = (known.dino_columns, known.ibot_columns) if known else (None, None)
    dino_logits = dino.rows @ dino.weight.T
    dino_TK = objective.dino_targets(dino_logits, temp=temp, columns_K=dino_columns)
    if ibot is None:
        return Targets(dino_TK, None)
    centering = objective.ibot_targets
    bias_K = centering.bias(lambda: pieces(ibot), temp=temp, columns_K=ibot_columns)
    return Targets(dino_TK, Made(*ibot, bias_K, temp, centering.see))


def target_columns(
    objective: "DINOv2Objective", rows: Sequence[TeacherRows], temp: float
) -> tuple[Tensor, Tensor | None]:
    """As ``DINOv2Objective.target_columns``; here the heads' last layers alone are made anew in each iteration."""
    dino, ibot = zip(*(_teacher_heads(objective, r) for r in rows), strict=True)
    dino_K = column_sums(lambda: (p for one in dino for p in pieces(one)), temp=temp)
    if objective.config.ibot_weight == 0:
        return dino_K, None
    return dino_K, column_sums(lambda: (p for one in ibot for p in pieces(one)), temp=temp)


def cross_entropies(
    objective: "DINOv2Objective",
    student: Features,
    local: Features | None,
    masks: Tensor,
    targets: Targets,
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms by name, without gradients, and their sum with."""
    config, n_crops = objective.config, len(student.cls)
    n_images, n_local = n_crops // 2, 0 if local is None else 2 * len(local.cls) // n_crops
    crops = torch.arange(n_crops, device=masks.device)
    others = crops.roll(n_images)  # the other view of the same image
    pairs = [torch.stack([others, others], dim=1)]
    if local is not None:
        pairs.append(crops.view(2, n_images).T.repeat(n_local, 1))
    pair_weight = config.dino_weight / (2 + 2 * n_local) / n_images
    # A local crop has two pairs, and its target is the mean of both.
    dino_N = torch.full((n_crops * (2 + n_local) // 2,), 2 * pair_weight, device=masks.device)
    dino_N[:n_crops] = pair_weight

    tokens = student.cls if local is None else torch.cat([student.cls, local.cls])
    work: list[Work] = [(tokens, dino_N, Given(targets.dino, torch.cat(pairs)))]
    if targets.ibot is not None:
        assert isinstance(targets.ibot, Made)
        masked_per_crop = masks.sum(dim=1, keepdim=True).clamp_min(1)
        patch_weight = (config.ibot_weight / n_crops / masked_per_crop).expand_as(masks)[masks]
        work.append((student.patches[masks], patch_weight, targets.ibot))
    total, terms = _through_heads(objective, work)
    sizes = [n_crops, len(dino_N) - n_crops, len(terms) - len(dino_N)]
    names = zip(("dino_global", "dino_local", "ibot"), terms.split(sizes), strict=True)
    there = {"dino_global": True, "dino_local": local is not None, "ibot": targets.ibot is not None}
    return {name: term.sum() for name, term in names if there[name]}, total


def _through_heads(objective: "DINOv2Objective", work: list[Work]) -> tuple[Tensor, Tensor]:
    """The sum of all rows' terms, and each of them [N] without gradients; a head is entered once."""
    temp, heads = objective.config.student_temp, [objective.dino_head]
    if objective.ibot_head is None:
        groups = [work]
    else:
        groups, heads = [[one] for one in work], [objective.dino_head, objective.ibot_head]
    totals, terms = [], []
    for head, group in zip(heads, groups, strict=False):
        features, factors, of = zip(*group, strict=True)
        factors_N = torch.cat(factors)
        rows_ND, weight_KD = head(torch.cat(features), apart=True)
        total, losses_N = prototype_loss(rows_ND, weight_KD, factors_N, of, temp=temp)
        totals.append(total)
        terms.append(factors_N * losses_N)
    return torch.stack(totals).sum(), torch.cat(terms)


def _teacher_heads(objective: "DINOv2Objective", teacher: TeacherRows) -> tuple[Apart, Apart | None]:
    if teacher.masked is None:
        return objective.dino_head(teacher.cls, apart=True), None
    if objective.ibot_head is not None:
        return objective.dino_head(teacher.cls, apart=True), objective.ibot_head(teacher.masked, apart=True)
    rows, weight = objective.dino_head(torch.cat([teacher.cls, teacher.masked]), apart=True)
    n_tokens = len(teacher.cls)
    return Apart(rows[:n_tokens], weight), Apart(rows[n_tokens:], weight)


def pieces(apart: Apart) -> Iterator[Tensor]:
    """Its logits, some rows at a time; of no rows one empty piece."""
    for start, stop in spans(max(1, len(apart.rows)), PIECE):
        yield apart.rows[start:stop] @ apart.weight.T
