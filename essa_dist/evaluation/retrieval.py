"""Retrieval: for each test image the bank is sorted by cosine similarity, and images of its class should come first.

An image of the bank is relevant if it shares the class, or where there may be several at least one. Neither the image
itself nor any of its patient is searched. Recall@k is the share of queries with a relevant image among the first k, as
in metric learning (Jegou et al. 2011, doi:10.1109/TPAMI.2010.57; Song et al. 2016, arXiv:1511.06452).
Shapes: N bank members, M queries, m of them at a time.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.evaluation.knn import SIMILARITIES_AT_ONCE
from essa_dist.evaluation.ranks import gather_rows, own_chunks
from essa_dist.evaluation.samples import Samples

ROWS_AT_ONCE = 256


def retrieval_scores(
    bank: Samples, test: Samples, at: Sequence[int], *, spread: bool = False
) -> dict[str, Tensor]:
    """Of each query [M]: ``map`` (its average precision over the whole bank), ``recall_at_k``, ``precision_at_k``.

    NaN for a query of which the bank holds no relevant image. ``spread``: over the ranks, all of which must call it.
    """
    bank_NC = F.normalize(bank.features, dim=1)
    rows = max(1, min(ROWS_AT_ONCE, SIMILARITIES_AT_ONCE // len(bank_NC)))
    mine = own_chunks(len(test.features), rows) if spread else [range(len(test.features))]
    found = [test.features.new_empty(0, 1 + 2 * len(at))]
    for own in mine:
        for part in torch.arange(own.start, own.stop, device=test.features.device).split(rows):
            found.append(_judged(bank_NC, bank, test.take(part), at))
    values = torch.cat(found)
    if spread:
        values = gather_rows(values, len(test.features), rows)
    return dict(zip(metrics(at), values.T, strict=True))


def metrics(at: Sequence[int]) -> list[str]:
    """The names of what is measured."""
    return ["map", *(f"recall_at_{k}" for k in at), *(f"precision_at_{k}" for k in at)]


def _judged(bank_NC: Tensor, bank: Samples, queries: Samples, at: Sequence[int]) -> Tensor:
    """[m, 1 + 2 len(at)], in the order of ``metrics``."""
    similarity_mN = F.normalize(queries.features, dim=1) @ bank_NC.T
    left_out_mN = _left_out(bank, queries)
    order_mN = similarity_mN.masked_fill(left_out_mN, -torch.inf).argsort(dim=1, descending=True, stable=True)
    relevant_mN = (_relevant(bank, queries) & ~left_out_mN).gather(1, order_mN)
    hits_mN = relevant_mN.cumsum(dim=1)
    place_N = torch.arange(1, len(bank_NC) + 1, device=bank_NC.device)
    total_m = hits_mN[:, -1].to(similarity_mN)
    average_precision_m = (relevant_mN * hits_mN / place_N).sum(dim=1) / total_m
    first = [hits_mN[:, min(k, len(bank_NC)) - 1] for k in at]
    recall = [(hits > 0).to(total_m) for hits in first]
    precision = [hits / k for hits, k in zip(first, at, strict=True)]
    values = torch.stack([average_precision_m, *recall, *precision], dim=1)
    return values.masked_fill((total_m == 0)[:, None], torch.nan)


def _left_out(bank: Samples, queries: Samples) -> Tensor:
    """bool [m, N]: the query itself and the images of its patient."""
    out_mN = torch.zeros(
        len(queries.features), len(bank.features), dtype=torch.bool, device=bank.features.device
    )
    for mine, theirs in ((queries.patients, bank.patients), (queries.numbers, bank.numbers)):
        if mine is not None and theirs is not None:
            out_mN |= mine[:, None] == theirs[None, :]
    return out_mN


def _relevant(bank: Samples, queries: Samples) -> Tensor:
    if not bank.is_multilabel:
        return queries.targets[:, None] == bank.targets[None, :]
    return (queries.targets == 1).float() @ (bank.targets == 1).float().T > 0
