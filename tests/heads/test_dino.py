"""The projection head: sizes as published, normalised where it says so."""

import pytest
import torch

from essa_dist.heads import DINOHead, HeadConfig


@pytest.mark.parametrize(
    ("width", "count"), [(384, 22_352_128), (768, 23_138_560), (1024, 23_662_848), (1536, 24_711_424)]
)
def test_parameter_counts_are_dinov2s(width: int, count: int) -> None:
    with torch.device("meta"):
        head = DINOHead(width, HeadConfig())
    assert sum(p.numel() for p in head.parameters()) == count


def test_logits_are_cosines_while_prototypes_have_unit_length() -> None:
    head = DINOHead(6, HeadConfig(prototypes=5, hidden=8, bottleneck=4))
    assert head(torch.randn(100, 6) * 50).abs().max() <= 1 + 1e-5


def test_norm_prototypes_keeps_the_length_untrained() -> None:
    free, fixed = (DINOHead(6, HeadConfig(prototypes=5, norm_prototypes=n)) for n in (False, True))
    assert free.last_layer.weight_g.requires_grad
    assert not fixed.last_layer.weight_g.requires_grad


def test_standardize_makes_unit_inputs_and_leaves_constant_features_alone() -> None:
    head, features = (
        DINOHead(3, HeadConfig(prototypes=5)),
        torch.randn(500, 3) * torch.tensor([5.0, 0.5, 0.0]) + 7,
    )
    head.standardize(features)
    z = (features - head.input_mean) / head.input_std
    torch.testing.assert_close(z[:, :2].std(dim=0), torch.ones(2), rtol=1e-3, atol=1e-3)
    assert z[:, 2].abs().max() < 1e-3


@pytest.mark.parametrize("init", ["trunc_normal", "kaiming"])
def test_both_initialisations_are_finite_and_kaiming_is_of_unit_scale(init: str) -> None:
    torch.manual_seed(0)
    head = DINOHead(64, HeadConfig.model_validate({"prototypes": 16, "init": init}))
    spread = head.mlp(torch.randn(200, 64)).std().item()
    assert (0.2 < spread < 5) == (init == "kaiming")
