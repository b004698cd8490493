"""APLA beside the shared contract: full fine-tuning is the oracle, the buffer the only record of the rows."""

import pytest
import torch
from torch import Tensor, nn

from essa_dist.adapters import AdapterConfig, build_adapter
from essa_dist.adapters.apla import APLA, APLAConfig, APLALinear, draw_rows
from essa_dist.backbones import BackboneConfig, build_architecture
from essa_dist.errors import UsageError

B, N, C, D, R = 2, 5, 6, 8, 3  # small and all different, so that a swapped axis fails


def pretrained() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(C, D)


def drawn(rank: int, *, seed: int) -> Tensor:
    return draw_rows(range(D), rank, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, R, D])
def test_tuned_rows_get_the_gradient_of_full_fine_tuning(rank: int) -> None:
    full, apla, x_BNC = pretrained(), APLALinear(pretrained(), drawn(rank, seed=0)), torch.randn(B, N, C)
    assert torch.equal(apla(x_BNC), full(x_BNC))
    for layer in (full, apla):
        layer(x_BNC).square().sum().backward()
    assert full.weight.grad is not None
    assert full.bias.grad is not None
    assert apla.bias is not None
    torch.testing.assert_close(apla.weight.grad, full.weight.grad[apla.rows])
    torch.testing.assert_close(apla.bias.grad, full.bias.grad[apla.rows])
    assert apla.base.weight.grad is None


def test_merge_changes_the_tuned_rows_only() -> None:
    before, apla = pretrained(), APLALinear(pretrained(), drawn(R, seed=0))
    with torch.no_grad():  # stands for training
        apla.weight += 1.0
    after = apla.merge()
    assert (after.weight != before.weight).any(dim=1).nonzero().flatten().tolist() == apla.rows.tolist()


def test_rows_restored_into_a_layer_that_drew_others_are_the_ones_used() -> None:
    # The reference kept a second record of its rows, so that a restored checkpoint permuted its outputs.
    x_BNC = torch.randn(B, N, C)
    trained, fresh = APLALinear(pretrained(), drawn(R, seed=0)), APLALinear(pretrained(), drawn(R, seed=1))
    trained.weight.data += 1.0
    fresh.to(torch.device("cpu")).load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x_BNC), trained(x_BNC))


def test_blocks_draw_different_rows() -> None:
    backbone = build_architecture(BackboneConfig(name="vit_tiny_patch16_224", weights="random"))
    APLA(APLAConfig(rank=16)).inject(backbone, seed=0)
    rows = {tuple(block.attn.proj.rows.tolist()) for block in backbone.vit.blocks}
    assert len(rows) == len(backbone.vit.blocks)


def test_rank_beyond_the_layer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1\.\.8 \(output features of a target\) or full, got 9"):
        drawn(D + 1, seed=0)


def test_a_target_that_matches_nothing_lists_the_candidates() -> None:
    backbone = build_architecture(BackboneConfig(name="vit_tiny_patch16_224", weights="random"))
    with pytest.raises(UsageError, match=r"'attn.out' matches no linear layer .*q, k, v.*attn.proj.*mlp.fc1"):
        APLA(APLAConfig(targets=("attn.out",))).inject(backbone, seed=0)


@pytest.mark.parametrize("rank", [2, "full"])
def test_parts_of_a_fused_layer_are_tuned_alone(rank: int | str) -> None:
    backbone = build_architecture(BackboneConfig(name="test_vit", weights="random"))
    APLA(APLAConfig.model_validate({"rank": rank, "targets": ["q", "v"]})).inject(backbone, seed=0)
    for block in backbone.vit.blocks:
        layer, width = block.attn.qkv, backbone.embed_dim
        thirds = (layer.rows // width).bincount(minlength=3).tolist()
        assert thirds == ([width, 0, width] if rank == "full" else [2, 0, 2])


def test_kind_alone_is_a_config() -> None:
    from pydantic import TypeAdapter

    assert isinstance(build_adapter(TypeAdapter(AdapterConfig).validate_python("apla")), APLA)
