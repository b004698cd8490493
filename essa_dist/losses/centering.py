"""How teacher logits become targets without collapse: softmax centering or Sinkhorn-Knopp.

Shapes: N rows (class tokens of all teacher crops, or masked patches) of this process, K prototypes.
"""

import torch
from torch import Tensor, nn

from essa_dist.distributed.collectives import all_reduce_max, all_reduce_sum

CENTER_MOMENTUM = 0.9


@torch.no_grad()
def sinkhorn_knopp(logits_NK: Tensor, *, temp: float, iterations: int = 3) -> Tensor:
    """Row-stochastic targets [N, K] whose prototypes are used equally over the rows of all processes.

    Source: SwAV, arXiv:2006.09882, as in DINOv2, but on logarithms: there exp(logits / temp) overflows once
    prototypes have grown. Processes may hold different numbers of rows, also none.
    """
    log_q_NK = logits_NK.float() / temp
    for _ in range(iterations):
        log_q_NK = log_q_NK - _log_column_sums(log_q_NK)  # each prototype gets the same mass
        log_q_NK = log_q_NK - log_q_NK.logsumexp(dim=1, keepdim=True)  # each row sums to 1
    return log_q_NK.exp()


def _log_column_sums(log_q_NK: Tensor) -> Tensor:
    """log of the sum over the rows of all processes, [K]."""
    n_prototypes = log_q_NK.shape[1]
    top_K = log_q_NK.amax(dim=0) if len(log_q_NK) else log_q_NK.new_full((n_prototypes,), -torch.inf)
    top_K = all_reduce_max(top_K)
    return top_K + all_reduce_sum((log_q_NK - top_K).exp().sum(dim=0)).log()


class SoftmaxCentering(nn.Module):
    """``softmax((logits - center) / temp)`` with a running mean of the logits as centre. Source: DINO."""

    center: Tensor  # [K] fp32. A buffer: part of the state that a checkpoint must hold.

    def __init__(self, n_prototypes: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(n_prototypes))

    @torch.no_grad()
    def forward(self, logits_NK: Tensor, *, temp: float) -> Tensor:
        """Targets from the centre as it was; then the centre moves by this batch, over all processes."""
        targets_NK = torch.softmax((logits_NK.float() - self.center) / temp, dim=-1)
        total_K = all_reduce_sum(logits_NK.float().sum(dim=0))
        n_rows = all_reduce_sum(total_K.new_tensor(float(len(logits_NK))))
        if n_rows > 0:
            self.center.mul_(CENTER_MOMENTUM).add_(total_K / n_rows, alpha=1 - CENTER_MOMENTUM)
        return targets_NK


class SinkhornKnopp(nn.Module):
    """``sinkhorn_knopp`` with the interface of ``SoftmaxCentering``; it has no state."""

    def __init__(self, n_prototypes: int) -> None:
        super().__init__()

    def forward(self, logits_NK: Tensor, *, temp: float) -> Tensor:
        """Targets [N, K]."""
        return sinkhorn_knopp(logits_NK, temp=temp)


CENTERINGS: dict[str, type[SoftmaxCentering] | type[SinkhornKnopp]] = {
    "softmax": SoftmaxCentering,
    "sinkhorn": SinkhornKnopp,
}
