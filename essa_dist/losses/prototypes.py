"""Cross-entropies over very many prototypes, of which fp32 logits exist for a slice of rows at a time.

A row's loss is ``-sum_k q_k log softmax(s)_k`` with logits ``s = W z / temp``; its gradient by ``s`` is
``softmax(s) - q``, where q sums to 1. So one pass over the logits of a block of rows gives both, the gradient takes the
logits' place in memory, and two products make of it what goes back to ``z`` and ``W``. Nothing with N x K numbers is
kept for backward: what comes in there is one number, a factor. Source of the idea: Liger Kernel, arXiv:2410.10989, and
Cut Cross-Entropy, arXiv:2411.09009.

Shapes: N student rows, n of them at a time, T teacher rows, D bottleneck, K prototypes.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from essa_dist.kernels import works
from essa_dist.losses.slices import cut, spans

BLOCK = 1024
"""Student rows whose logits exist at a time, in the precision of the computation: 134 MB of 65,536 in 16 bits."""
PIECE = 256
"""Teacher rows, likewise."""
SLICE_CPU, SLICE_GPU = 2**18, 2**24
"""How many of these logits exist in fp32 at a time: what stays in a core's cache, or fills a GPU."""
KERNEL = "the Triton kernel of the cross-entropies"
AMPLIFY = 16.0
"""On gradients in 16 bits: 1 / 65,536 would lose digits in fp16, and a sum over BLOCK rows stays below its 65,504."""


class Given(NamedTuple):
    """Targets that exist: of row i the mean of the two rows ``pairs[i]`` of ``probabilities``.

    Cross-entropy is linear in its target, so one row stands for the terms with both teacher crops.
    """

    probabilities: Tensor  # [T, K] fp32
    pairs: Tensor  # [N, 2]

    def size(self) -> int:
        return len(self.pairs)

    def part(self, start: int, stop: int) -> "Given":
        return self._replace(pairs=self.pairs[start:stop])

    def write(self, q_nK: Tensor, start: int) -> Tensor:
        """Targets of the rows from ``start`` on, but for a factor; what they sum to, [n, 1]."""
        one_n, other_n = self.pairs[start : start + len(q_nK)].unbind(1)
        torch.index_select(self.probabilities, 0, one_n, out=q_nK)
        q_nK.add_(self.probabilities[other_n])
        return q_nK.new_full((len(q_nK), 1), 2.0)


class Made(NamedTuple):
    """Targets ``softmax(rows @ weight.T / temp + bias)`` of the teacher, made where they are needed."""

    rows: Tensor  # [N, D]
    weight: Tensor  # [K, D]
    bias: Tensor  # [K] fp32, of a centering's ``bias``
    temp: float
    see: (
        Callable[[Tensor, int], object] | None
    )  # is given sums [K] of logits, and of how many rows; of none too

    def size(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> "Made":
        return self._replace(rows=self.rows[start:stop])


class Logits(NamedTuple):
    """A piece of :class:`Made`, whose logits are there."""

    logits: Tensor  # [N, K]
    bias: Tensor
    temp: float
    total: Tensor | None  # [K] fp32, to which the logits are added

    def write(self, q_nK: Tensor, start: int) -> Tensor:
        """As :meth:`Given.write`."""
        q_nK.copy_(self.logits[start : start + len(q_nK)])
        if self.total is not None:
            self.total.addmv_(q_nK.T, q_nK.new_ones(len(q_nK)))  # the sum over rows, without memory for it
        torch.add(self.bias, q_nK, alpha=1 / self.temp, out=q_nK)
        return q_nK.sub_(q_nK.amax(dim=1, keepdim=True)).exp_().sum(dim=1, keepdim=True)


def prototype_loss(
    rows_ND: Tensor,
    weight_KD: Tensor,
    factors_N: Tensor,
    targets: Sequence[Given | Made],
    *,
    temp: float,
) -> tuple[Tensor, Tensor]:
    """``sum_i factors_i * loss_i``, with gradients to rows and weight; and the single losses [N] fp32, without.

    ``targets`` belong to the rows in their order; ``factors_N`` are fp32 and not negative.
    """
    for one in targets:
        if isinstance(one, Made) and one.see is not None and not one.size():
            one.see(
                torch.zeros_like(one.bias), 0
            )  # what it sees is summed over ranks, and those wait for this one
    total, losses_N = _PrototypeLoss.apply(  # type: ignore[no-untyped-call]
        rows_ND, weight_KD, factors_N, targets, temp, torch.is_grad_enabled()
    )
    return total, losses_N


class _PrototypeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_ND: Tensor,
        weight_KD: Tensor,
        factors_N: Tensor,
        targets: Sequence[Given | Made],
        temp: float,
        backward: bool,
    ) -> tuple[Tensor, Tensor]:
        losses_N = torch.zeros_like(factors_N)
        to_rows_ND = torch.zeros_like(rows_ND)
        to_weight_KD: Tensor | None = None
        # Factors are far below 1, as 1 / masked patches: relative to the largest, fp16 can hold their products.
        largest = torch.cat([factors_N, factors_N.new_full((1,), torch.finfo(torch.float32).tiny)]).amax()
        scaled_ND = (rows_ND * (factors_N / largest)[:, None]).to(rows_ND.dtype)
        for start, stop in spans(len(rows_ND), BLOCK):
            logits_nK = rows_ND[start:stop] @ weight_KD.T
            for at, part in cut(targets, start, stop):
                mine = slice(at - start, at - start + part.size())
                losses_N[at : at + part.size()] = compare_(logits_nK[mine], part, temp=temp)
            if backward:  # the logits are gone, here is their gradient
                torch.mm(logits_nK, weight_KD, out=to_rows_ND[start:stop])
                product_KD = logits_nK.T @ scaled_ND[start:stop]
                # From the second block on in fp32, as many roundings would add up.
                to_weight_KD = product_KD if to_weight_KD is None else to_weight_KD.float().add_(product_KD)
        ctx.mark_non_differentiable(losses_N)
        ctx.to_rows_ND, ctx.factors_N, ctx.largest = to_rows_ND, factors_N, largest
        ctx.to_weight_KD = torch.zeros_like(weight_KD) if to_weight_KD is None else to_weight_KD
        ctx.scale = 1 / (temp * AMPLIFY)
        return (factors_N * losses_N).sum(), losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale, to_weight_KD = ctx.scale * gradient, ctx.to_weight_KD
        if to_weight_KD is None:
            raise RuntimeError(
                "the gradient of prototype_loss is scaled in place, so it can be asked for once"
            )
        ctx.to_weight_KD = None
        to_rows_ND = ctx.to_rows_ND * (ctx.factors_N * scale)[:, None]
        for part_kD in to_weight_KD.split(BLOCK):  # in fp32: the factor may be out of fp16's range
            part_kD.copy_(part_kD * (ctx.largest * scale).expand(1, 1))
        return to_rows_ND.to(ctx.to_rows_ND.dtype), to_weight_KD, None, None, None, None


@torch.no_grad()
def compare_(logits_NK: Tensor, targets: Given | Made, *, temp: float) -> Tensor:
    """Losses [N] of these logits; ``AMPLIFY * (softmax(logits / temp) - targets)`` takes their place."""
    if isinstance(targets, Given):
        return _compare(logits_NK, targets, temp)
    losses, total_K = [], None if targets.see is None else torch.zeros_like(targets.bias)
    for start, stop in spans(len(logits_NK), PIECE):
        teacher_nK = targets.rows[start:stop] @ targets.weight.T
        piece = Logits(teacher_nK, targets.bias, targets.temp, total_K)
        losses.append(_compare(logits_NK[start:stop], piece, temp))
    if targets.see is not None and total_K is not None:
        targets.see(total_K, len(logits_NK))
    return torch.cat(losses)


def _compare(logits_NK: Tensor, targets: Given | Logits, temp: float) -> Tensor:
    on_gpu = logits_NK.is_cuda and type(logits_NK) is Tensor  # and no fake tensor
    if on_gpu and _has_kernel(logits_NK.device):
        from essa_dist.losses.prototypes_triton import fused_compare

        return fused_compare(logits_NK, targets, temp, AMPLIFY)
    return _compare_in_slices(logits_NK, targets, temp)


@cache
def _has_kernel(device: torch.device) -> bool:
    return find_spec("triton") is not None and works(KERNEL, _kernel_is_right, device)


def _kernel_is_right(device: torch.device) -> bool:
    """The kernel against the slices, with both kinds of targets and rows that end in the middle of a piece."""
    from essa_dist.losses.prototypes_triton import WIDTH, fused_compare

    n_prototypes = WIDTH + 5
    logits = 5 * torch.randn(3, n_prototypes, device=device)
    pairs = torch.tensor([[0, 1], [2, 2], [1, 0]], device=device)
    made = Logits(3 * torch.randn_like(logits), torch.randn(n_prototypes, device=device), 0.07, None)
    for targets in (Given(torch.softmax(logits.flip(1), dim=1), pairs), made):
        one, other = logits.clone(), logits.clone()
        losses = fused_compare(one, targets, 0.1, AMPLIFY), _compare_in_slices(other, targets, 0.1)
        if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in (losses, (one, other))):
            return False
    return True


def _compare_in_slices(logits_NK: Tensor, targets: Given | Logits, temp: float) -> Tensor:
    n_rows, n_prototypes = logits_NK.shape
    height = max(1, (SLICE_CPU if logits_NK.device.type == "cpu" else SLICE_GPU) // n_prototypes)
    losses_N = logits_NK.new_empty(n_rows, dtype=torch.float32)
    # Every operation is in place: fresh memory costs a CPU more than the arithmetic, whose operands stay in its cache.
    buffers = logits_NK.new_empty(3, min(height, n_rows), n_prototypes, dtype=torch.float32)
    for start, stop in spans(n_rows, height):
        s_nK, p_nK, q_nK = buffers[:, : stop - start]
        mass_n1 = targets.write(q_nK, start)
        s_nK.copy_(logits_NK[start:stop])
        torch.add(s_nK.amax(dim=1, keepdim=True) / -temp, s_nK, alpha=1 / temp, out=s_nK)
        total_n1 = torch.exp(s_nK, out=p_nK).sum(dim=1, keepdim=True)
        chosen_n1 = s_nK.mul_(q_nK).sum(dim=1, keepdim=True) / mass_n1
        losses_N[start:stop] = (total_n1.log() - chosen_n1).squeeze(1)
        logits_NK[start:stop] = p_nK.mul_(AMPLIFY / total_n1).sub_(q_nK.mul_(AMPLIFY / mass_n1))
    return losses_N
