"""Measures of collapse at the extremes whose value is known."""

import math

import pytest
import torch

from essa_dist.objectives.diagnostics import prototype_entropy, rankme, row_entropy


def test_rankme_counts_the_directions_in_use() -> None:
    assert rankme(torch.ones(10, 6)).item() == pytest.approx(1, abs=1e-3)
    assert rankme(torch.eye(6)).item() == pytest.approx(6)
    assert rankme(torch.zeros(4, 3)).isfinite()


def test_entropies_tell_uniform_from_certain_and_spread_from_one_prototype() -> None:
    uniform, one, each = torch.full((4, 4), 0.25), torch.eye(4)[[0, 0, 0, 0]], torch.eye(4)
    assert row_entropy(uniform).item() == pytest.approx(math.log(4))
    assert row_entropy(one).item() == row_entropy(each).item() == 0
    assert prototype_entropy(one).item() == 0
    assert prototype_entropy(each).item() == pytest.approx(math.log(4))
