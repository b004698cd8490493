"""The pooled head: what it sees, how it starts."""

import pytest
import torch
from torch import Tensor

from essa_dist.backbones.vit import Features
from essa_dist.heads import PooledHead, PooledHeadConfig

B, N, C, L = 3, 10, 8, 5


def tokens() -> Features:
    random = torch.Generator().manual_seed(0)
    return Features(torch.randn(B, C, generator=random), torch.randn(B, N, C, generator=random))


def head(**settings: object) -> PooledHead:
    torch.manual_seed(0)
    return PooledHead(C, L, PooledHeadConfig.model_validate(settings)).eval()


@pytest.mark.parametrize(
    ("pooling", "seen"),
    [
        ("cls", tokens().cls),
        ("mean", tokens().patches.mean(dim=1)),
        ("cls+mean", torch.cat([tokens().cls, tokens().patches.mean(dim=1)], dim=1)),
    ],
)
@pytest.mark.parametrize("fc_norm", [False, True])
def test_logits_are_a_linear_map_of_what_is_pooled(pooling: str, seen: Tensor, fc_norm: bool) -> None:
    made = head(pooling=pooling, fc_norm=fc_norm)
    if fc_norm:
        seen = torch.nn.functional.layer_norm(seen, seen.shape[1:], eps=1e-6)
    torch.testing.assert_close(made(tokens()), seen @ made.linear.weight.T + made.linear.bias)
    assert made(tokens()).shape == (B, L)


def test_count_is_that_of_the_published_head() -> None:
    made = PooledHead(768, 14, PooledHeadConfig(pooling="mean", fc_norm=True))
    assert sum(p.numel() for p in made.parameters()) == 14 * 769 + 2 * 768


@pytest.mark.parametrize("std", [0.01, 2e-5])
def test_it_starts_with_small_weights_and_no_bias(std: float) -> None:
    made = PooledHead(500, 40, PooledHeadConfig(init_std=std))
    assert made.linear.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not made.linear.bias.any()


def test_dropout_is_for_training_alone() -> None:
    made = head(dropout=0.5, init_std=1.0)
    assert torch.equal(made(tokens()), made(tokens()))
    assert not torch.equal(made.train()(tokens()), made(tokens()))


def test_every_trained_tensor_belongs_to_a_module_that_is_entered_by_a_call() -> None:
    made, entered = head(pooling="cls+mean", fc_norm=True), set()
    for module in made.modules():
        module.register_forward_hook(lambda module, *_: entered.add(module))
    made(tokens())
    owners = {module for module in made.modules() if list(module.parameters(recurse=False))}
    assert owners
    assert owners <= entered
