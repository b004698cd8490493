"""Weighted k-nearest-neighbour classification of frozen features, for several k and temperatures in one pass.

Source: Wu et al. 2018, arXiv:1805.01978, as used by DINO and DINOv2: cosine similarity s, each of the
k nearest bank members votes for its class with weight exp(s / T).
Shapes: N bank members, M test samples, C feature channels, K classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.ranks import gather_rows, own_chunks

SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of fp32: bounds the memory, whatever the size of bank and test
ROWS_AT_ONCE = 512  # test samples of one product; more are no faster


class Neighbours(NamedTuple):
    """The k nearest bank members of each test sample, the nearest first."""

    similarity: Tensor  # [M, k] cosine
    member: Tensor  # [M, k] int64, row of the bank


def nearest_neighbours(bank_NC: Tensor, test_MC: Tensor, *, k: int, spread: bool = False) -> Neighbours:
    """The ``k`` most similar bank members, in memory that grows with k and not with the bank.

    ``spread``: over the ranks of a launcher, all of which must call it; each gets the whole result, equal to that of
    one process. Raises ``UsageError`` if the bank holds fewer than ``k`` members.
    """
    if not 1 <= k <= len(bank_NC):
        raise UsageError(f"k={k} is outside 1..{len(bank_NC)} (the bank): lower k or enlarge the bank")
    bank_NC = F.normalize(bank_NC, dim=1)
    rows = max(1, min(ROWS_AT_ONCE, SIMILARITIES_AT_ONCE))
    columns = max(k, SIMILARITIES_AT_ONCE // rows)
    mine = own_chunks(len(test_MC), rows) if spread else [range(len(test_MC))]
    found = [
        _nearest(bank_NC, F.normalize(chunk_mC, dim=1), k, columns)
        for own in mine
        for chunk_mC in test_MC[own.start : own.stop].split(rows)
    ]
    empty = Neighbours(test_MC.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=test_MC.device))
    similarity, index = (torch.cat(parts) for parts in zip(empty, *found, strict=True))
    if spread:
        similarity, index = (gather_rows(own, len(test_MC), rows) for own in (similarity, index))
    return Neighbours(similarity, index)


def _nearest(bank_NC: Tensor, test_mC: Tensor, k: int, columns: int) -> Neighbours:
    """Over the bank part by part: the best of a part compete with the best so far."""
    best: Neighbours | None = None
    for start in range(0, len(bank_NC), columns):
        similarity = test_mC @ bank_NC[start : start + columns].T
        top = similarity.topk(min(k, similarity.shape[1]), dim=1)
        found = Neighbours(top.values, top.indices + start)
        best = found if best is None else _best(k, best, found)
    assert best is not None  # k >= 1, so the bank isn't empty
    return best


def _best(k: int, one: Neighbours, other: Neighbours) -> Neighbours:
    similarity, index = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    top = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return Neighbours(top.values, index.gather(1, top.indices))


def votes(
    neighbours: Neighbours, targets_N: Tensor, *, num_classes: int, k: int, temperature: float
) -> Tensor:
    """Share of the votes of the first ``k`` neighbours that each class gets, [M, K].

    ``targets_N``: class indices [N], and every row sums to one; or [N, K] of 0, 1 and -1 (not known), and an entry is
    the weighted mean of what is known of the neighbours: the bank's share of the class where that is nothing.
    The weights are divided by their sum (a softmax over the k neighbours), which leaves the winner unchanged and can't
    overflow at a small ``temperature``.
    """
    weights_Mk = (neighbours.similarity[:, :k] / temperature).softmax(dim=1)
    index_Mk = neighbours.member[:, :k]
    if targets_N.ndim == 1:
        votes_MK = weights_Mk.new_zeros(len(weights_Mk), num_classes)
        return votes_MK.scatter_add_(1, targets_N[index_Mk], weights_Mk)
    columns = [_mean_of_known(weights_Mk, flags_N, index_Mk) for flags_N in targets_N.to(weights_Mk).T]
    return torch.stack(columns, dim=1)


def _mean_of_known(weights_Mk: Tensor, flags_N: Tensor, index_Mk: Tensor) -> Tensor:
    known_N = flags_N >= 0
    share = flags_N[known_N].mean() if known_N.any() else flags_N.new_zeros(())
    weights_Mk = weights_Mk * known_N[index_Mk]
    total_M = weights_Mk.sum(dim=1)
    mean_M = (weights_Mk * flags_N[index_Mk]).sum(dim=1) / total_M
    return torch.where(total_M > 0, mean_M, share)


def knn_probabilities(
    bank_NC: Tensor,
    bank_labels_N: Tensor,
    test_MC: Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """``votes`` of the ``k`` nearest neighbours, [M, K]. Raises ``UsageError`` if the bank has fewer than ``k``."""
    neighbours = nearest_neighbours(bank_NC, test_MC, k=k)
    return votes(neighbours, bank_labels_N, num_classes=num_classes, k=k, temperature=temperature)
