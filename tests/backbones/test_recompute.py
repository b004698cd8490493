"""Activation checkpointing beside the shared contract of adapters, which holds losses and gradients."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from essa_dist.adapters import Branches
from essa_dist.backbones import Backbone
from essa_dist.backbones.recompute import Recompute, recompute, recompute_blocks
from essa_dist.backbones.saved import by_module, saved_tensors
from essa_dist.errors import UsageError

SIZE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
EVA = partial(Eva, init_values=0.1, use_rot_pos_emb=True, ref_feat_shape=(4, 4))


def tiny(recompute: bool, vit_class: Any = VisionTransformer, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    vit = vit_class(**SIZE, num_classes=0, global_pool="", dynamic_img_size=True, **changes)
    vit.pretrained_cfg = {}
    if recompute:
        recompute_blocks(vit)
    return Backbone(vit, name="tiny").train()


def gradients(backbone: Backbone, images: Tensor = IMAGES) -> dict[str, Tensor]:
    torch.manual_seed(7)
    backbone(images).patches.float().square().sum().backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


def kept_bytes(backbone: Backbone) -> int:
    """What a forward pass leaves for the backward pass, beside the parameters."""
    storages: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in backbone.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    for block in backbone.vit.blocks:  # whose inputs are kept by torch's checkpoint, past these hooks
        block.register_forward_pre_hook(lambda block, args: (keep(args[0]), None)[1])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = backbone(IMAGES)
    assert output.cls.requires_grad
    return sum(storages.values())


def test_stochastic_depth_and_dropout_draw_the_same_when_recomputed() -> None:
    random = {"drop_path_rate": 0.5, "proj_drop_rate": 0.3}
    expected, found = (gradients(tiny(recompute, **random)) for recompute in (False, True))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_a_block_keeps_its_input_only_and_lets_hooks_see_it() -> None:
    plain, recomputed = kept_bytes(tiny(False)), kept_bytes(tiny(True))
    assert recomputed < plain / 5
    backbone, seen = tiny(True), set[int]()
    inputs: set[int] = set()
    for block in backbone.vit.blocks:
        block.register_forward_pre_hook(lambda block, args: inputs.add(args[0].data_ptr()))

    def see(tensor: Tensor) -> Tensor:
        seen.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        _output = backbone(IMAGES)  # alive, as are the inputs
        assert len(inputs) == len(backbone.vit.blocks)
        assert inputs <= seen


def test_hooks_on_a_block_run_once_and_those_inside_run_again() -> None:
    backbone, calls = tiny(True), dict.fromkeys(("block", "inside"), 0)

    def count(what: str, *_: Any) -> None:
        calls[what] += 1

    block = backbone.vit.blocks[1]
    for name, module in (("block", block), ("inside", block.mlp.fc2)):
        module.register_forward_pre_hook(partial(count, name))
        module.register_forward_hook(partial(count, name))
    gradients(backbone)
    assert calls == {"block": 2, "inside": 4}  # to its end: behind its last layer too


def test_it_is_recomputed_before_the_backward_pass_of_any_layer_inside() -> None:
    # ZeRO-3 gathers a layer's tensors before its backward pass, and frees them when the layer is left.
    backbone, order = tiny(True), []
    last: Any = backbone.vit.blocks[1].mlp.fc2
    last.register_forward_pre_hook(lambda *_: order.append("forward"))
    last.register_full_backward_pre_hook(lambda *_: order.append("backward"))
    gradients(backbone)
    assert order == ["forward", "forward", "backward"]


def test_a_pass_without_gradients_is_not_recomputed_and_keeps_nothing() -> None:
    backbone = tiny(True)
    calls: list[int] = []
    backbone.vit.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        backbone(IMAGES)
    assert len(calls) == 1


@pytest.mark.parametrize("vit_class", [VisionTransformer, EVA])
def test_tensors_of_the_block_itself_keep_their_branch_and_precision(vit_class: Any) -> None:
    # Eva's blocks own their LayerScale: what chooses it are hooks on the block, which don't run again.
    found = []
    for again in (False, True):
        backbone = tiny(again, vit_class)
        branches = Branches(backbone, compute_dtype=torch.bfloat16)
        for teacher in branches.teachers.values():
            teacher.data.zero_()
        found.append(gradients(backbone, IMAGES.bfloat16()))
        assert not any(name in vars(module) for module in backbone.modules() for name in module._parameters)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


def test_a_deep_copy_computes_with_its_own_tensors() -> None:
    backbone = tiny(True)
    twin = copy.deepcopy(backbone)
    expected = gradients(backbone)
    with torch.no_grad():
        for p in backbone.parameters():
            p.zero_()
    for name, gradient in gradients(twin).items():
        assert torch.equal(gradient, expected[name]), name


def of_mlps(backbone: Backbone) -> dict[str, float]:
    """What the MLPs keep, in units of tokens x width; 17 tokens of 24 features."""
    kept = by_module(saved_tensors(backbone, lambda: backbone(IMAGES)), unit=5 * 17 * 24 * 4)
    return {path: n for path, n in kept.items() if ".mlp" in path}


@pytest.mark.parametrize(
    "vit_class", [VisionTransformer, partial(EVA, swiglu_mlp=True)], ids=["plain", "eva"]
)
@pytest.mark.parametrize("what", ["mlp", 2])
def test_gradients_are_equal_bit_for_bit_whatever_is_recomputed(vit_class: Any, what: Recompute) -> None:
    random = {"drop_path_rate": 0.5, "proj_drop_rate": 0.3}
    backbone = tiny(False, vit_class, **random)
    recompute(backbone.vit, what)
    expected, found = gradients(tiny(False, vit_class, **random)), gradients(backbone)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_recomputed_mlp_with_frozen_layers_keeps_its_input_only() -> None:
    found = []
    for what in ("none", "mlp"):
        backbone = tiny(False)
        backbone.vit.blocks.requires_grad_(False)
        recompute(backbone.vit, what)
        found.append(sum(of_mlps(backbone).values()))
    assert found == [pytest.approx(3 * 4), pytest.approx(3 * 1, abs=0.01)]


def test_an_mlp_is_recomputed_before_the_backward_pass_of_its_layers() -> None:
    backbone, order = tiny(False), []
    recompute(backbone.vit, "mlp")
    mlp: Any = backbone.vit.blocks[1].mlp
    for name in ("fc1", "fc2"):
        layer = getattr(mlp, name)
        layer.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        layer.register_full_backward_pre_hook(lambda *_, name=name: order.append(f"{name} backward"))
    gradients(backbone)
    assert order == ["fc1", "fc2", "fc2 backward", "fc1", "fc1 backward"]


def test_every_second_block_is_the_second_and_the_fourth() -> None:
    vit = VisionTransformer(**{**SIZE, "depth": 5})
    recompute(vit, 2)
    assert ["forward" in vars(block) for block in vit.blocks] == [False, True, False, True, False]


def test_where_no_mlp_is_known_it_is_said() -> None:
    with pytest.raises(UsageError, match=r"engine.recompute=mlp: .*; use blocks"):
        recompute(torch.nn.Sequential(torch.nn.Linear(2, 2)), "mlp")
