"""Weighted k-nearest-neighbour classification of frozen features.

Source: Wu et al. 2018, arXiv:1805.01978, as used by DINO and DINOv2: cosine similarity s, each of the
k nearest bank members votes for its class with weight exp(s / T).
Shapes: N bank members, M test samples, C feature channels, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.errors import UsageError

SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of fp32: bounds the memory, whatever the size of bank and test


def knn_probabilities(
    bank_NC: Tensor,
    bank_labels_N: Tensor,
    test_MC: Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Share of the votes that each class gets, [M, K]; every row sums to one.

    The weights are divided by their sum (a softmax over the k neighbours), which leaves the winner
    unchanged and can't overflow at a small ``temperature``. Raises ``UsageError`` if the bank holds
    fewer than ``k`` members.
    """
    if not 1 <= k <= len(bank_NC):
        raise UsageError(f"k={k} is outside 1..{len(bank_NC)} (the bank): lower k or enlarge the bank")
    bank_CN = F.normalize(bank_NC, dim=1).T
    rows = max(1, SIMILARITIES_AT_ONCE // len(bank_NC))
    votes = [
        _votes(F.normalize(chunk, dim=1) @ bank_CN, bank_labels_N, num_classes, k, temperature)
        for chunk in torch.split(test_MC, rows)
    ]
    return torch.cat(votes)


def _votes(similarity_MN: Tensor, labels_N: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    nearest = similarity_MN.topk(k, dim=1)
    weights_Mk = (nearest.values / temperature).softmax(dim=1)
    votes_MK = weights_Mk.new_zeros(len(weights_Mk), num_classes)
    return votes_MK.scatter_add_(1, labels_N[nearest.indices], weights_Mk)
