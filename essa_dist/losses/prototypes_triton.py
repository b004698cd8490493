# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-not-found, import-untyped"
"""The comparison of :mod:`.prototypes` as one Triton kernel. Imported where Triton is needed only; the torch code is its oracle.

A program has one row and reads it twice, the second time from the GPU's cache: once for the normaliser of its softmax,
as in online softmax (arXiv:1805.02867), once for loss and gradient. Each lane keeps a maximum and a sum of its own, and
they meet at the end of the row.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from essa_dist.losses.prototypes import Given, Logits

WIDTH = 4096
"""Prototypes that a program handles at a time."""


@triton.jit
def normaliser(row, bias, K, inv_temp, BIASED: tl.constexpr, WIDTH: tl.constexpr):
    """log-sum-exp of ``row * inv_temp + bias``."""
    top = tl.full((WIDTH,), float("-inf"), tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, K, WIDTH):
        k = start + tl.arange(0, WIDTH)
        x = tl.load(row + k, mask=k < K, other=float("-inf")).to(tl.float32) * inv_temp
        if BIASED:
            x += tl.load(bias + k, mask=k < K, other=0.0)
        new = tl.maximum(top, x)
        # Lanes beyond K have seen nothing: for them the exponents are inf - inf.
        total = tl.where(new == float("-inf"), 0.0, total * tl.exp(top - new) + tl.exp(x - new))
        top = new
    highest = tl.max(top, axis=0)
    return highest + tl.log(tl.sum(total * tl.exp(top - highest), axis=0))


@triton.jit
def compare(
    logits,  # [N, K] 16 or 32 bits; the gradient takes their place
    losses,  # [N] fp32
    teacher,  # GIVEN: probabilities [T, K] fp32; else logits [N, K]
    bias,  # [K] fp32, read unless GIVEN
    pairs,  # [N, 2] int64, read if GIVEN
    K,
    inv_temp,
    inv_teacher_temp,
    amplify,
    GIVEN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    row = logits + i * K
    norm = normaliser(row, bias, K, inv_temp, False, WIDTH)
    if GIVEN:
        one = teacher + tl.load(pairs + 2 * i) * K
        other = teacher + tl.load(pairs + 2 * i + 1) * K
        teacher_norm = norm
    else:
        one = teacher + i * K
        other = one
        teacher_norm = normaliser(one, bias, K, inv_teacher_temp, True, WIDTH)
    loss = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, K, WIDTH):
        k = start + tl.arange(0, WIDTH)
        inside = k < K
        q = tl.load(one + k, mask=inside, other=0.0).to(tl.float32)
        if GIVEN:
            q = 0.5 * (q + tl.load(other + k, mask=inside, other=0.0))
        else:
            exponent = q * inv_teacher_temp + tl.load(bias + k, mask=inside, other=0.0) - teacher_norm
            q = tl.where(inside, tl.exp(exponent), 0.0)
        log_p = tl.load(row + k, mask=inside, other=0.0).to(tl.float32) * inv_temp - norm
        loss -= q * log_p
        tl.store(row + k, (amplify * (tl.exp(log_p) - q)).to(logits.dtype.element_ty), mask=inside)
    tl.store(losses + i, tl.sum(loss, axis=0))


def fused_compare(
    logits_NK: Tensor, targets: "Given | Logits", temp: float, amplify: float, *, width: int = WIDTH
) -> Tensor:
    """As ``prototypes._compare_in_slices``."""
    from essa_dist.losses.prototypes import Given

    n_rows, n_prototypes = logits_NK.shape
    assert logits_NK.is_contiguous(), "rows of a block follow each other"
    losses_N = logits_NK.new_empty(n_rows, dtype=torch.float32)
    if isinstance(targets, Given):
        teacher, pairs = targets.probabilities.contiguous(), targets.pairs.contiguous()
        bias, inv_teacher_temp = teacher, 1.0  # any address: it isn't read
    else:
        teacher, bias = targets.logits, targets.bias.contiguous()
        pairs, inv_teacher_temp = bias, 1 / targets.temp
        if targets.total is not None:
            targets.total.add_(teacher.sum(dim=0, dtype=torch.float32))
    width = min(width, triton.next_power_of_2(n_prototypes))
    with torch.cuda.device_of(logits_NK):  # Triton launches on the current GPU, whatever it is given
        compare[(n_rows,)](
            logits_NK,
            losses_N,
            teacher,
            bias,
            pairs,
            n_prototypes,
            1 / temp,
            inv_teacher_temp,
            amplify,
            GIVEN=isinstance(targets, Given),
            WIDTH=width,
            # No two threads with the same element: one would read it when the other's gradient is there.
            num_warps=max(1, min(8, width // 512)),
        )
    return losses_N
