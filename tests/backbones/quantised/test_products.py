"""Products with packed weights, against ``F.linear`` with the unpacked weight in fp32."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from essa_dist.backbones.quantised import products
from essa_dist.backbones.quantised.codes import E4M3
from essa_dist.backbones.quantised.linear import KINDS, FP8Linear, Kind, QuantisedLinear, fits, quantise_
from essa_dist.backbones.quantised.products import multiplies_fp8, pack_tokens
from essa_dist.kernels import works

B, N, C, D = 3, 7, 128, 48
EMULATED = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12),
    reason="this torch multiplies fp8 on no CPU",
)


def packed(
    kind: Kind, *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[QuantisedLinear, nn.Linear]:
    """A packed layer, and a plain one of the weight that is packed in it."""
    torch.manual_seed(0)
    plain = nn.Linear(C, D, bias=bias).requires_grad_(False).to(dtype)
    layer = copy.deepcopy(plain)
    quantise_(layer, kind, dtype=dtype, device=None)
    assert isinstance(layer, QuantisedLinear)
    plain.weight.data = layer.weight
    return layer, plain


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-3, 3, N)[:, None]  # tokens of very different sizes
    x, dy = torch.randn(B, N, C, generator=generator) * sizes, torch.randn(B, N, D, generator=generator)
    return x.to(dtype).requires_grad_(), dy.to(dtype)


def both(layer: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Output and input gradient."""
    x, dy = inputs(dtype)
    y: Tensor = layer(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx


def error(found: Tensor, expected: Tensor) -> float:
    """The largest relative error of a token."""
    return float(((found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_input_gradient_are_those_of_the_unpacked_weight(kind: Kind, bias: bool) -> None:
    layer, plain = packed(kind, bias=bias)
    torch.testing.assert_close(both(layer), both(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_bias_gets_its_gradient(kind: Kind) -> None:
    layer, plain = packed(kind)
    x, dy = inputs()
    for each in (layer, plain):
        each.bias.requires_grad_(True)
        each(x).backward(dy)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaled", [False, pytest.param(True, marks=EMULATED)])
def test_nothing_is_kept_for_the_backward_pass_but_the_packed_weight(kind: Kind, scaled: bool) -> None:
    layer, _ = packed(kind)
    layer.scaled = scaled  # type: ignore[assignment]  # others know nothing of it
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        layer(inputs()[0])
    assert {t.data_ptr() for t in kept} == {p.data_ptr() for p in layer.packed}


@EMULATED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_in_8_bits_are_near_those_in_fp32(dtype: torch.dtype) -> None:
    layer, plain = packed("fp8", dtype=dtype)
    assert isinstance(layer, FP8Linear)
    layer.scaled = True
    expected = both(plain.float(), torch.float32)
    for found, right in zip(both(layer, dtype), expected, strict=True):
        assert found.dtype is dtype
        assert error(found, right) < 0.05  # e4m3: 3 bits behind the point


@EMULATED
def test_the_product_in_8_bits_is_that_of_the_packed_numbers() -> None:
    layer, _ = packed("fp8")
    assert isinstance(layer, FP8Linear)
    layer.scaled = True
    x, dy = inputs()
    y, dx = both(layer)
    tokens, scale = pack_tokens(x.detach())
    assert tokens.dtype is E4M3
    torch.testing.assert_close(
        y, F.linear(tokens.float() * scale, layer.weight, layer.bias), rtol=0.01, atol=0.01
    )
    numbers, scales = (p.detach() for p in layer.packed)
    gradient, size = pack_tokens(dy, scales.view(1, -1))
    torch.testing.assert_close(
        dx, (gradient.float() * size) @ numbers.view(E4M3).float(), rtol=0.01, atol=0.01
    )


def test_tokens_keep_their_relative_precision_whatever_their_size() -> None:
    x, _ = inputs()
    tokens, scale = pack_tokens(x.detach())
    assert error(tokens.float() * scale, x.detach()) < 0.04
    zeros, one = pack_tokens(torch.zeros(2, 16))
    assert (zeros.float() == 0).all()
    assert one.isfinite().all()


def test_a_number_that_is_not_finite_is_seen_in_the_output() -> None:
    tokens, scale = pack_tokens(torch.tensor([[1.0, float("inf")], [1.0, 2.0]]))
    assert not (tokens.float() * scale)[0].isfinite().all()
    assert (tokens.float() * scale)[1].isfinite().all()


@pytest.mark.parametrize(("kind", "sizes"), [("fp8", (24, 32)), ("fp8", (32, 24)), ("nf4", (96, 32))])
def test_sizes_that_the_format_has_no_room_for_are_known(kind: Kind, sizes: tuple[int, int]) -> None:
    assert not fits(nn.Linear(*sizes), kind)
    assert fits(nn.Linear(64, 32), kind)


@EMULATED
@pytest.mark.parametrize("asked_before", [True, False])
def test_a_compiled_layer_takes_the_product_in_8_bits_for_granted(
    monkeypatch: pytest.MonkeyPatch, asked_before: bool
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def see(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(products, "_has_fp8", lambda device: True)
    works.cache_clear()
    layer, _ = packed("fp8")
    try:
        if asked_before:
            assert multiplies_fp8(torch.device("cpu"))
        with torch.no_grad():  # as the teacher's pass, which is the first
            torch.compile(layer, backend=see, dynamic=False, fullgraph=True)(inputs()[0].detach())
    finally:
        works.cache_clear()
    assert [node.target for node in graphs[0].graph.nodes].count(torch._scaled_mm) == 1


def test_a_cpu_does_not_multiply_fp8_in_hardware() -> None:
    assert not multiplies_fp8(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_packed_layers_give_what_they_give_on_a_cpu(kind: Kind) -> None:
    layer, plain = packed(kind)
    expected = both(plain)
    on_gpu = layer.cuda()
    x, dy = (t.detach().cuda().bfloat16() for t in inputs())
    x.requires_grad_()
    on_gpu.bias.data = on_gpu.bias.data.bfloat16()
    y = on_gpu(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    for found, right in zip((y.detach(), dx), expected, strict=True):
        assert error(found.cpu(), right) < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not multiplies_fp8(torch.device("cuda", 0)),
    reason="needs fp8 tensor cores",
)
def test_on_a_gpu_of_8_bits_the_product_is_the_scaled_one_and_faster() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(1024, 4096, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    layer = copy.deepcopy(plain)
    quantise_(layer, "fp8", dtype=torch.bfloat16, device=None)
    x = torch.randn(16384, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(16384, 4096, device="cuda", dtype=torch.bfloat16)

    def milliseconds(module: nn.Module) -> float:
        for _ in range(5):
            torch.autograd.grad(module(x), x, dy)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(20):
            torch.autograd.grad(module(x), x, dy)
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 20

    assert milliseconds(layer) < milliseconds(plain)
    assert error(layer(x).detach(), plain(x).detach()) < 0.06
