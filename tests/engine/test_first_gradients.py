"""What is to be trained and isn't is found before the first update."""

import pytest
import torch
from torch import Tensor, nn

from essa_dist import adapt
from essa_dist.adapters import build_adapter
from essa_dist.adapters.apla import APLAConfig
from essa_dist.adapters.branches import Branches
from essa_dist.adapters.lora import LoRA
from essa_dist.engine.first_gradients import check_gradients, expect_gradients
from essa_dist.errors import UntrainedError


class Model(nn.Module):
    """``used`` is a layer, ``gated`` stands behind a factor, ``unused`` is never called."""

    def __init__(self, gate: float, *, drop: float = 0.0) -> None:
        super().__init__()
        self.used, self.gated, self.unused = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(5, 2)
        self.drop = nn.Dropout(drop)
        self.gate = gate

    def forward(self, x_N3: Tensor) -> Tensor:
        return self.used(x_N3) + self.drop(self.gate * self.gated(x_N3))


def first_step(model: Model) -> Branches:
    branches = Branches(model)
    expect_gradients(branches, build_adapter(APLAConfig()))
    step(model)
    return branches


def step(model: Model) -> None:
    model(torch.randn(4, 3)).square().sum().backward()


def test_a_module_that_is_never_entered_is_named() -> None:
    branches = first_step(Model(gate=1.0))
    with pytest.raises(UntrainedError, match=r"2 of 6 .* unused\.weight \(no gradient\), unused\.bias"):
        check_gradients(branches)


def test_a_tensor_whose_gradient_is_only_zeros_is_named() -> None:
    model = Model(gate=0.0)
    model.unused.requires_grad_(False)
    branches = first_step(model)
    with pytest.raises(UntrainedError, match=r"2 of 4 .* gated\.weight \(only zeros\), gated\.bias"):
        check_gradients(branches)


def test_zeros_may_be_chance_where_something_is_dropped_but_not_for_ever() -> None:
    model = Model(gate=0.0, drop=0.5)
    model.unused.requires_grad_(False)
    branches = first_step(model)
    for _ in range(2):
        check_gradients(branches)
        step(model)
    with pytest.raises(UntrainedError, match="gated"):
        check_gradients(branches)


def test_after_a_sound_step_nothing_is_looked_at_any_more() -> None:
    model = Model(gate=1.0)
    model.unused.requires_grad_(False)
    branches = first_step(model)
    check_gradients(branches)
    assert branches.gradients is None
    check_gradients(branches)


def test_a_run_that_would_train_less_than_it_says_ends_before_its_first_update(
    recipe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(None, *recipe, "adapter={kind: lora, dropout: 0}", "duration=2")  # A's zeros are expected
    init = LoRA.__init__

    def forgetful(self: LoRA, config: object) -> None:
        init(self, config)  # type: ignore[arg-type]
        self.silent = ()

    monkeypatch.setattr(LoRA, "__init__", forgetful)
    with pytest.raises(UntrainedError, match=r"lora_A.* \(only zeros\).*nothing was updated"):
        adapt(None, *recipe, "adapter={kind: lora, dropout: 0}", "duration=2", "overwrite=true")
