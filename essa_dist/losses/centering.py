"""How teacher logits become targets without collapse: softmax centering or Sinkhorn-Knopp.

Shapes: N rows (class tokens of all teacher crops, or masked patches) of this process, K prototypes.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from essa_dist.distributed.collectives import all_reduce_max, all_reduce_sum

CENTER_MOMENTUM = 0.9
ITERATIONS = 3
"""Of Sinkhorn-Knopp, as in SwAV and DINOv2."""

AllLogits = Callable[[], Iterable[Tensor]]
"""Gives the logits of this process in pieces [N, K], as often as it is called."""


class SoftmaxCentering(nn.Module):
    """``softmax((logits - center) / temp)`` with a running mean of the logits as centre. Source: DINO.

    The centre stays where it is until :meth:`settle`: all micro-batches of an update see the same one, and logits of
    an update that is never made don't reach it.
    """

    center: Tensor  # [K] fp32. A buffer: part of the state that a checkpoint must hold.
    surveys = False  # rows need not know of each other before their targets are made

    def __init__(self, n_prototypes: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(n_prototypes))
        self._seen: Tensor | None = (
            None  # [K + 1] fp32: sum of the logits since the last update, number of rows
        )

    @torch.no_grad()
    def forward(self, logits_NK: Tensor, *, temp: float, columns_K: Tensor | None = None) -> Tensor:
        """Targets [N, K] from the centre as it is; the logits wait for ``settle``."""
        logits_NK = logits_NK.float()
        self.see(logits_NK.sum(dim=0), len(logits_NK))
        return torch.softmax((logits_NK - self.center) / temp, dim=-1)

    def see(self, total_K: Tensor, n_rows: int) -> None:
        """Remember the sum of the logits of these rows for ``settle``."""
        seen = torch.cat([total_K, self.center.new_full((1,), n_rows)])
        self._seen = seen if self._seen is None else self._seen + seen

    def bias(self, all_logits: AllLogits, *, temp: float, columns_K: Tensor | None = None) -> Tensor:
        """[K] with which the targets are ``softmax(logits / temp + bias)``."""
        return -self.center / temp

    @torch.no_grad()
    def settle(self, *, applied: bool) -> None:
        """Move the centre by all logits since the last call, over all processes; or, not ``applied``, forget them.

        All processes must call it with the same ``applied``.
        """
        seen, self._seen = self._seen, None
        if seen is None or not applied:
            return
        total_K, n_rows = all_reduce_sum(seen).tensor_split([-1])
        step = torch.where(n_rows > 0, 1 - CENTER_MOMENTUM, 0.0)  # not an if: the device is not waited for
        self.center.lerp_(total_K / n_rows.clamp_min(1), step)


class SinkhornKnopp(nn.Module):
    """``sinkhorn_knopp`` with the interface of ``SoftmaxCentering``; it has no state."""

    surveys = True  # targets of a micro-batch depend on the rows of all

    def __init__(self, n_prototypes: int) -> None:
        super().__init__()

    def forward(self, logits_NK: Tensor, *, temp: float, columns_K: Tensor | None = None) -> Tensor:
        """Targets [N, K]; ``columns_K`` from :func:`column_sums` where these are not all rows of the update."""
        if columns_K is None:
            return sinkhorn_knopp(logits_NK, temp=temp)
        return balanced(logits_NK, columns_K, temp=temp)

    see = None  # it need not

    def bias(self, all_logits: AllLogits, *, temp: float, columns_K: Tensor | None = None) -> Tensor:
        """[K] with which the targets are ``softmax(logits / temp + bias)``; ``columns_K`` as in ``forward``."""
        return -(column_sums(all_logits, temp=temp) if columns_K is None else columns_K)

    def settle(self, *, applied: bool) -> None:
        pass


def sinkhorn_knopp(logits_NK: Tensor, *, temp: float, iterations: int = ITERATIONS) -> Tensor:
    """Row-stochastic targets [N, K] whose prototypes are used equally over the rows of all processes.

    Source: SwAV, arXiv:2006.09882, as in DINOv2, but on logarithms: there exp(logits / temp) overflows once
    prototypes have grown. Processes may hold different numbers of rows, also none.
    """
    columns_K = column_sums(lambda: [logits_NK], temp=temp, iterations=iterations)
    return balanced(logits_NK, columns_K, temp=temp)


@torch.no_grad()
def balanced(logits_NK: Tensor, columns_K: Tensor, *, temp: float) -> Tensor:
    """``exp(logits / temp)`` with every column divided by its sum, then every row by its own; [N, K]."""
    return torch.softmax(logits_NK.float() / temp - columns_K, dim=1)


@torch.no_grad()
def column_sums(all_logits: AllLogits, *, temp: float, iterations: int = ITERATIONS) -> Tensor:
    """What Sinkhorn-Knopp divides the columns of ``exp(logits / temp)`` by in the end, as logarithms [K].

    Its state is one number per column: those of the rows follow from it. So ``all_logits`` is asked once in each
    iteration for the logits of this process in pieces [N, K], at least one, that need not exist at the same time.
    """
    columns_K: Tensor | None = None
    for _ in range(iterations):
        sums = []
        for logits_NK in all_logits():
            log_q_NK = logits_NK.float() / temp
            if columns_K is not None:  # each prototype gets the same mass, then each row sums to 1
                log_q_NK = log_q_NK - (log_q_NK - columns_K).logsumexp(dim=1, keepdim=True)
            sums.append(log_q_NK.logsumexp(dim=0))
        columns_K = _over_processes(torch.stack(sums).logsumexp(dim=0))
    assert columns_K is not None, "at least one iteration"
    return columns_K


def _over_processes(log_K: Tensor) -> Tensor:
    """log of the sum of ``exp(log_K)`` of all processes; -inf is a process without rows."""
    top_K = all_reduce_max(log_K.clone()).clamp_min(torch.finfo(log_K.dtype).min)
    return top_K + all_reduce_sum((log_K - top_K).exp()).log()


CENTERINGS: dict[str, type[SoftmaxCentering] | type[SinkhornKnopp]] = {
    "softmax": SoftmaxCentering,
    "sinkhorn": SinkhornKnopp,
}
