"""Patch colours and attention: right against slow oracles, comparable between models, the same at every call."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from essa_dist.backbones import Backbone
from essa_dist.report import features

SIDE, PATCH, C, HEADS = 24, 8, 12, 3  # 9 patches
N = (SIDE // PATCH) ** 2


def backbone(seed: int = 0, **kwargs: object) -> Backbone:
    torch.manual_seed(seed)
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": C, "depth": 2, "num_heads": HEADS}
    settings = {"num_classes": 0, "global_pool": "", "dynamic_img_size": True, **sizes, **kwargs}
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, **settings)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)  # timm's own start is so small that attention is uniform
    return Backbone(vit, name="test").eval()


def naive_cls_attention(model: Backbone, image: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) written out head by head and token by token, [H, T]."""
    attention, tokens = model.vit.blocks[-1].attn, model.vit.patch_embed(image[None])
    x_TC = model.vit._pos_embed(tokens)
    x_TC = model.vit.blocks[0](x_TC)
    x_TC = model.vit.blocks[1].norm1(x_TC)[0]
    d = C // HEADS
    rows = []
    for head in range(HEADS):
        w_q, w_k = (attention.qkv.weight[part * C + head * d : part * C + (head + 1) * d] for part in (0, 1))
        b_q, b_k = (attention.qkv.bias[part * C + head * d : part * C + (head + 1) * d] for part in (0, 1))
        q = attention.q_norm(w_q @ x_TC[0] + b_q)
        scores = torch.stack([q @ attention.k_norm(w_k @ token + b_k) / d**0.5 for token in x_TC])
        rows.append(scores.exp() / scores.exp().sum())
    return torch.stack(rows)


@pytest.mark.parametrize("kwargs", [{}, {"qk_norm": True}, {"reg_tokens": 2, "init_values": 0.1}], ids=str)
@torch.no_grad()
def test_attention_is_the_softmax_of_the_plain_module(kwargs: dict[str, object]) -> None:
    model, images = backbone(**kwargs), torch.randn(2, 3, SIDE, SIDE)
    seen = features.look(model, images)
    oracle = torch.stack([naive_cls_attention(model, image) for image in images])
    torch.testing.assert_close(oracle.sum(-1), torch.ones(2, HEADS))
    torch.testing.assert_close(seen.attention, oracle[:, :, model.num_prefix_tokens :])
    torch.testing.assert_close(seen.patches, model(images).patches)


@torch.no_grad()
def test_attention_rows_sum_to_one_over_all_tokens() -> None:
    attention = backbone().vit.blocks[-1].attn
    rows = features.cls_rows(attention, torch.randn(2, N + 1, C))
    assert rows.shape == (2, HEADS, N + 1)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, HEADS))


def test_looking_leaves_no_hook_behind() -> None:
    model = backbone()
    hooks = model.vit.blocks[-1].attn._forward_pre_hooks
    before = dict(hooks)
    features.look(model, torch.randn(1, 3, SIDE, SIDE))
    assert dict(hooks) == before


def test_a_block_without_plain_attention_has_no_map_but_features() -> None:
    model = backbone(attn_layer="diff")  # two softmaxes, subtracted: no such thing as "the" attention
    seen = features.look(model, torch.randn(2, 3, SIDE, SIDE))
    assert seen.attention is None
    assert seen.patches.shape == (2, N, C)


def test_principal_components_are_uncorrelated_and_carry_the_most_variance() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(200, 6)) * [9, 5, 3, 1, 1, 1] @ np.linalg.qr(random.normal(size=(6, 6)))[0]
    scores = features.pca(rows)
    variances = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    np.testing.assert_allclose(np.cov(scores.T), np.diag(variances[:3]), atol=1e-9)


def test_the_smaller_group_of_patches_gets_the_bright_side() -> None:
    rows = np.zeros((50, 4))
    rows[:5] = [10.0, -10.0, 0.0, 5.0]
    first = features.pca(rows + np.random.default_rng(0).normal(size=rows.shape) * 0.1)[:, 0]
    assert first[:5].min() > first[5:].max()


def test_alignment_undoes_any_order_and_sign_of_the_components() -> None:
    reference = features.pca(np.random.default_rng(0).normal(size=(60, 5)) * [5, 4, 3, 2, 1])
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        turned = reference[:, order] * [1.0, -1.0, -1.0]
        np.testing.assert_allclose(features.align(turned, reference), reference)


def test_alignment_mixes_no_components_and_makes_no_correlation_negative() -> None:
    random = np.random.default_rng(0)
    reference, scores = random.normal(size=(2, 60, 3))
    aligned = features.align(scores, reference)
    assert {tuple(np.abs(column)) for column in aligned.T} == {tuple(np.abs(column)) for column in scores.T}
    assert all(np.corrcoef(aligned[:, i], reference[:, i])[0, 1] > 0 for i in range(3))


def test_two_models_that_differ_by_a_rotation_of_their_features_get_the_same_colours() -> None:
    patches = torch.randn(2, N, C, dtype=torch.float64) * torch.linspace(3, 0.1, C)
    rotation = torch.linalg.qr(torch.randn(C, C, dtype=torch.float64)).Q
    before, after = features.joint_colours(patches, patches @ rotation)
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert before.min() == 0.0
    assert before.max() == 1.0


def test_features_that_are_all_alike_give_a_plain_picture_and_no_nan() -> None:
    before, after = features.joint_colours(torch.ones(2, N, C), torch.randn(2, N, C))
    assert np.isfinite(before).all()
    assert np.isfinite(after).all()


def test_enlarged_maps_keep_rows_and_columns_in_place() -> None:
    grid = np.zeros((1, 4, 2))
    grid[0, 1] = [1.0, 2.0]  # top right of 2 x 2
    big = features.enlarge(grid, 8)
    assert big.shape == (1, 8, 8, 2)
    np.testing.assert_allclose(big[0, 0, -1], [1.0, 2.0])
    np.testing.assert_allclose(big[0, -1, 0], [0.0, 0.0])
    np.testing.assert_allclose(features.enlarge(grid[..., 0], 8), big[..., 0])
