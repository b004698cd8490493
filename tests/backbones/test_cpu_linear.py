"""Linear layers in bf16 on a CPU give what torch's give."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from essa_dist.backbones import cpu_linear
from essa_dist.backbones.cpu_linear import CPULinear, quicken_linears
from essa_dist.kernels import works

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor has no bf16",
)


def learned(layer: nn.Linear, x: Tensor) -> list[Tensor | None]:
    """The output, and the gradients of input, weight and bias, in fp32."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    found = [y, x.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad]
    return [None if tensor is None else tensor.detach().float() for tensor in found]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n_in", "n_out"), [(24, 72), (96, 24)])
@pytest.mark.parametrize("trained", ["all", "weight", "bias", "nothing"])
def test_values_and_gradients_lie_as_near_to_exact_ones_as_torchs(
    n_in: int, n_out: int, bias: bool, trained: str
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(n_in, n_out, bias=bias).bfloat16()
    layer.weight.requires_grad_(trained in ("all", "weight"))
    if layer.bias is not None:
        layer.bias.requires_grad_(trained in ("all", "bias"))
    x = torch.randn(3, 50, n_in).bfloat16()
    plain = learned(layer, x)
    layer.double()
    exact = learned(layer, x.double())
    layer.bfloat16()
    quicken_linears(layer)
    assert type(layer) is CPULinear
    for ours, torchs, right in zip(learned(layer, x), plain, exact, strict=True):
        assert (ours is None) == (torchs is None) == (right is None)
        if ours is not None and torchs is not None and right is not None:
            assert ours.shape == right.shape
            assert (ours - right).norm() <= 1.1 * (torchs - right).norm() + 1e-6 * right.norm()


def test_an_input_without_gradient_asks_for_none() -> None:
    layer = nn.Linear(8, 8).bfloat16()
    quicken_linears(layer)
    layer(torch.ones(2, 8).bfloat16()).sum().backward()
    assert layer.weight.grad is not None


def test_what_nobody_trains_keeps_no_input() -> None:
    kept: list[int] = []
    layer = nn.Linear(8, 24).bfloat16().requires_grad_(False)
    quicken_linears(layer)
    x = torch.ones(5, 8).bfloat16().requires_grad_()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert kept == [8 * 24]


def test_other_precisions_are_torchs_business() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 8)
    expected = layer(x)
    quicken_linears(layer)
    assert torch.equal(layer(x), expected)


def test_layers_that_are_more_than_linear_stay() -> None:
    class More(nn.Linear):
        pass

    layer = More(8, 8)
    quicken_linears(layer)
    assert type(layer) is More


@pytest.fixture
def untried() -> Iterator[None]:
    works.cache_clear()
    yield
    works.cache_clear()


@pytest.mark.usefixtures("untried")
def test_a_build_whose_layer_is_wrong_goes_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu_linear, "product", lambda x, weight, bias: x @ weight.T)
    layer = nn.Linear(8, 8)
    quicken_linears(layer)
    assert type(layer) is nn.Linear
    assert "oneDNN's linear layer is left out" in caplog.text
