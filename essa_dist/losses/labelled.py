"""Losses of labelled images: one term for each image, so that their mean over micro-batches is that over the batch.

``gamma`` makes them focal: what is classified well counts less, by (1 - p)^gamma. Source: Lin et al. 2017,
arXiv:1708.02002; applied to each class, which for targets between 0 and 1 (mixed images, label smoothing) is the
natural extension. With gamma 0 they are the cross-entropies. Shapes: B images, K classes or labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    log_p_BK: Tensor,
    targets: Tensor,
    *,
    weight_K: Tensor | None = None,
    gamma: float = 0.0,
) -> Tensor:
    """``-sum_k w_k t_k (1 - p_k)^gamma log p_k`` of each image, [B].

    ``targets``: class numbers [B], or the share of each class [B, K].
    """
    n_classes = log_p_BK.shape[1]
    t_BK = (F.one_hot(targets, n_classes) if targets.ndim == 1 else targets).to(log_p_BK.dtype)
    terms_BK = -t_BK * log_p_BK if weight_K is None else -weight_K * t_BK * log_p_BK
    return (terms_BK * _missing(log_p_BK, gamma)).sum(dim=1)


def binary_cross_entropy(
    logits_BK: Tensor,
    targets_BK: Tensor,
    *,
    positive_K: Tensor | None = None,
    negative_K: Tensor | None = None,
    gamma: float = 0.0,
) -> Tensor:
    """Mean over the labels of an image that are known of ``-w⁺ t (1-p)^gamma log p - w⁻ (1-t) p^gamma log(1-p)``, [B].

    ``targets_BK``: 0..1, below 0 where not known; an image of which nothing is known has a loss of 0.
    """
    known_BK = targets_BK >= 0
    log_p_BK, log_q_BK = F.logsigmoid(logits_BK), F.logsigmoid(-logits_BK)
    yes_BK = -targets_BK * log_p_BK * _missing(log_p_BK, gamma)
    no_BK = -(1 - targets_BK) * log_q_BK * _missing(log_q_BK, gamma)
    terms_BK = yes_BK * (1.0 if positive_K is None else positive_K)
    terms_BK = terms_BK + no_BK * (1.0 if negative_K is None else negative_K)
    return torch.where(known_BK, terms_BK, 0).sum(dim=1) / known_BK.sum(dim=1).clamp_min(1)


def continuation_ratios(logits_BL: Tensor) -> Tensor:
    """log P(grade = k), [B, L + 1], where logit k is that of P(grade > k | grade >= k).

    Source: CORN, Shi et al. 2021, arXiv:2111.08851. P(grade > k) can only fall with k, so the grades' probabilities are
    never negative and sum to 1. Their cross-entropy is CORN's sum of conditional terms for each image.
    """
    over_BL, not_over_BL = F.logsigmoid(logits_BL), F.logsigmoid(-logits_BL)
    reached_BL = F.pad(over_BL.cumsum(dim=1), (1, 0))  # log P(grade >= k)
    return reached_BL + F.pad(not_over_BL, (0, 1))


def _missing(log_p: Tensor, gamma: float) -> Tensor | float:
    """(1 - p)^gamma; away from p = 1, where its slope may be infinite."""
    return 1.0 if gamma == 0 else (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).eps) ** gamma
