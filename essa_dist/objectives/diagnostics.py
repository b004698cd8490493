"""Measures of collapse. Shapes: N rows, C features, K prototypes."""

import torch
from torch import Tensor


@torch.no_grad()
def row_entropy(targets_NK: Tensor) -> Tensor:
    """Mean entropy of the rows, in nats: ln K when the teacher says nothing, 0 when it is certain."""
    entropy: Tensor = torch.special.entr(targets_NK).sum(dim=1).mean()
    return entropy


@torch.no_grad()
def prototype_entropy(targets_NK: Tensor) -> Tensor:
    """Entropy of the mean row, in nats: 0 when every image goes to the same prototype."""
    entropy: Tensor = torch.special.entr(targets_NK.mean(dim=0)).sum()
    return entropy


@torch.no_grad()
def rankme(features_NC: Tensor) -> Tensor:
    """Effective rank, between 1 and min(N, C): exp of the entropy of the normalised singular values.

    Source: RankMe, arXiv:2210.02885, eq. 1.
    """
    # The decomposition refuses what is not finite; the losses say it, so here it must not hide them.
    singular = torch.linalg.svdvals(features_NC.float().nan_to_num())
    share = singular / singular.sum().clamp_min(1e-12)
    return torch.exp(torch.special.entr(share).sum())
