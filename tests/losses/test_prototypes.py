"""Losses over prototypes in slices against the obvious form, in every precision; and the Triton kernel against the slices."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import essa_dist.losses.prototypes as prototypes
from essa_dist.losses.prototypes import AMPLIFY, BLOCK, Given, Logits, Made, compare_, prototype_loss

N, T, D, K, TEMP, TEACHER_TEMP = 13, 4, 6, 37, 0.1, 0.05
GRAINS = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Relative error of gradients that is rounding: a few digits of the precision."""


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Given, Made]:
    torch.manual_seed(0)
    rows_ND = F.normalize(torch.randn(N, D), dim=1).to(dtype).requires_grad_()
    weight_KD = torch.randn(K, D).to(dtype).requires_grad_()
    given = Given(torch.softmax(4 * torch.randn(T, K), dim=1), torch.randint(T, (5, 2)))
    teacher_ND, teacher_KD = F.normalize(torch.randn(N - 5, D), dim=1).to(dtype), torch.randn(K, D).to(dtype)
    made = Made(teacher_ND, teacher_KD, torch.randn(K), TEACHER_TEMP, None)
    return rows_ND, weight_KD, torch.rand(N) / 70, given, made


def obvious(rows_ND: Tensor, weight_KD: Tensor, factors_N: Tensor, given: Given, made: Made) -> Tensor:
    """Losses [N], in fp64."""
    mean = (given.probabilities[given.pairs[:, 0]] + given.probabilities[given.pairs[:, 1]]) / 2
    logits = (made.rows @ made.weight.T).double() / made.temp + made.bias
    targets_NK = torch.cat([mean.double(), logits.softmax(dim=1)])
    return -(targets_NK * F.log_softmax((rows_ND.double() @ weight_KD.double().T) / TEMP, dim=1)).sum(dim=1)


@pytest.mark.parametrize("block", [3, BLOCK])
@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("dtype", GRAINS, ids=str)
def test_losses_and_gradients_are_those_of_the_obvious_form(
    dtype: torch.dtype, scale: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototypes, "BLOCK", block)
    monkeypatch.setattr(prototypes, "SLICE_CPU", 2 * K)
    rows, weight, factors, *targets = inputs(dtype)
    total, losses = prototype_loss(rows, weight, factors, targets, temp=TEMP)
    found = torch.autograd.grad(scale * total, [rows, weight])
    oracle = obvious(rows, weight, factors, *targets)
    expected = torch.autograd.grad(scale * (factors * oracle).sum(), [rows, weight])
    torch.testing.assert_close(losses.double(), oracle, rtol=GRAINS[dtype], atol=1e-5)
    torch.testing.assert_close(total, (factors * losses).sum())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one - other).norm() < GRAINS[dtype] * other.norm()


def test_sums_of_the_teachers_logits_are_told_once() -> None:
    rows, weight, factors, given, made = inputs()
    told: list[tuple[Tensor, int]] = []
    prototype_loss(rows, weight, factors, [given, made._replace(see=lambda *a: told.append(a))], temp=TEMP)
    ((total_K, n_rows),) = told
    torch.testing.assert_close(total_K, (made.rows @ made.weight.T).sum(dim=0))
    assert n_rows == N - 5


def test_a_rank_without_rows_tells_a_sum_of_zero_as_others_wait_for_it() -> None:
    _, weight, _, _, made = inputs()
    told: list[tuple[Tensor, int]] = []
    none = made.part(0, 0)._replace(see=lambda *a: told.append(a))
    prototype_loss(torch.empty(0, D), weight, torch.empty(0), [none], temp=TEMP)
    ((total_K, n_rows),) = told
    assert torch.equal(total_K, torch.zeros(K))
    assert n_rows == 0


def test_no_rows_give_zero_and_gradients_of_zero() -> None:
    _, weight, _, _, made = inputs()
    rows = torch.empty(0, D, requires_grad=True)
    total, losses = prototype_loss(rows, weight, torch.empty(0), [made.part(0, 0)], temp=TEMP)
    total.backward()
    assert total.item() == 0
    assert len(losses) == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_without_gradients_there_is_the_loss_alone() -> None:
    rows, weight, factors, *targets = inputs()
    with torch.no_grad():
        total, _ = prototype_loss(rows, weight, factors, targets, temp=TEMP)
    expected, _ = prototype_loss(rows, weight, factors, targets, temp=TEMP)
    assert not total.requires_grad
    assert torch.equal(total, expected.detach())


def test_a_second_backward_pass_is_refused() -> None:
    rows, weight, factors, *targets = inputs()
    total, _ = prototype_loss(rows, weight, factors, targets, temp=TEMP)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


def test_for_backward_nothing_is_kept_with_a_column_for_each_prototype_and_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the tensors that are alive at any time, none is [N, K] in fp32 where the computation is in 16 bits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, Tensor) and x.dtype == torch.float32:
                    seen.append(x.untyped_storage().nbytes() // 4)
            return out

    seen: list[int] = []
    monkeypatch.setattr(prototypes, "SLICE_CPU", 2 * K)
    rows, weight, factors, given, made = inputs(torch.bfloat16)
    with Sizes():
        total, _ = prototype_loss(rows, weight, factors, [given, made], temp=TEMP)
        total.backward()
    assert max(seen) <= 3 * 2 * K  # three buffers of two rows; [N, K] would be 13 rows


def check_kernel(device: str) -> None:
    """Run by the test below where Triton interprets, and by the one on a GPU."""
    from essa_dist.losses.prototypes_triton import fused_compare

    for dtype, grain in GRAINS.items():
        for n_prototypes, width in ((37, 16), (64, 64)):
            torch.manual_seed(0)
            logits = torch.randn(5, n_prototypes, device=device).to(dtype)
            given = Given(
                torch.rand(3, n_prototypes, device=device).softmax(1), torch.randint(3, (5, 2), device=device)
            )
            teacher = torch.randn(5, n_prototypes, device=device).to(dtype)
            bias = torch.randn(n_prototypes, device=device)
            totals = [torch.zeros(n_prototypes, device=device) for _ in range(2)]
            for of in (given, *(Logits(teacher, bias, TEACHER_TEMP, total) for total in totals[:1])):
                mine, its = logits.clone(), logits.clone()
                twin = of if isinstance(of, Given) else of._replace(total=totals[1])
                expected = prototypes._compare_in_slices(mine, of, TEMP)
                found = fused_compare(its, twin, TEMP, AMPLIFY, width=width)
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
                assert (its - mine).float().norm() < grain * mine.float().norm(), (dtype, n_prototypes)
            torch.testing.assert_close(*totals, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernel_computes_what_the_slices_do_in_tritons_interpreter() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_prototypes as t; t.check_kernel('cpu')"
    env = os.environ | {"TRITON_INTERPRET": "1"}  # read when Triton is imported
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_computes_what_the_slices_do_on_a_gpu() -> None:
    check_kernel("cuda")


def test_compare_leaves_the_amplified_gradient_in_the_place_of_the_logits() -> None:
    rows, weight, _, _, made = inputs()
    logits = (rows[5:] @ weight.T).detach()
    expected = AMPLIFY * (
        (logits / TEMP).softmax(1) - ((made.rows @ made.weight.T) / TEACHER_TEMP + made.bias).softmax(1)
    )
    compare_(logits, made, temp=TEMP)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
