"""Compiled blocks: equal numbers, and one graph for all blocks. Traced as for any backend; no C++ compiler is needed."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from essa_dist.adapters import ADAPTERS, Branches, inject_adapter
from essa_dist.backbones import Backbone
from essa_dist.backbones.attention import fast_attention
from essa_dist.backbones.lean import lean_layers
from essa_dist.backbones.recompute import recompute
from essa_dist.backbones.regional import compile_blocks

IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    return counter


def tiny(adapter: str = "apla", **kept: Any) -> tuple[Backbone, Branches]:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "init_values": 0.5}
    vit = VisionTransformer(**size, num_classes=0, global_pool="")
    vit.pretrained_cfg = {}
    backbone = Backbone(vit, name="tiny").train()
    inject_adapter(backbone, ADAPTERS[adapter][0](), seed=0)
    branches = Branches(backbone)
    fast_attention(vit)
    lean_layers(vit, kept.get("keep", "exact"))
    recompute(vit, kept.get("recompute", "none"))
    return backbone, branches


def gradients(backbone: Backbone) -> list[Tensor]:
    backbone.zero_grad()
    backbone(IMAGES).patches.sin().sum().backward()
    return [p.grad for p in backbone.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("adapter", "kept"),
    [("apla", {"keep": "8bit"}), ("apla", {"recompute": "blocks"})],
    ids=["apla-8bit", "apla-recomputed"],
)
def test_blocks_of_any_number_take_two_graphs_and_give_equal_gradients(
    counter: CompileCounterWithBackend, adapter: str, kept: dict[str, Any]
) -> None:
    expected = gradients(tiny(adapter, **kept)[0])
    backbone, _ = tiny(adapter, **kept)
    compile_blocks(backbone.vit, "on", unless=lambda: False)
    for found, gradient in zip(gradients(backbone), expected, strict=True):
        torch.testing.assert_close(found, gradient)
    assert counter.frame_count == 2  # the first block, whose input needs no gradient, and the others
    assert not any(name in vars(m) for m in backbone.modules() for name in m._parameters)


def test_the_teacher_computes_with_its_own_tensors(counter: CompileCounterWithBackend) -> None:
    backbone, branches = tiny()
    compile_blocks(backbone.vit, "on", unless=lambda: False)
    for teacher in branches.teachers.values():
        teacher.data.mul_(1.5)
    plain = copy.deepcopy(branches)
    for block in plain.root.vit.blocks:
        block.__class__ = Block
    plain.attach()
    with branches.teacher(), plain.teacher():
        assert torch.allclose(backbone(IMAGES).cls, plain.root(IMAGES).cls, atol=1e-6)
    assert counter.frame_count == 1


def test_auto_leaves_a_cpu_alone_and_unless_every_device(counter: CompileCounterWithBackend) -> None:
    for when, unless in (("auto", False), ("on", True), ("off", False)):
        backbone, _ = tiny()
        compile_blocks(backbone.vit, when, unless=lambda unless=unless: unless)
        gradients(backbone)
    assert counter.frame_count == 0


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_failed_pass_leaves_no_casts_behind(counter: CompileCounterWithBackend, is_compiled: bool) -> None:
    backbone, _ = tiny("full")  # norm1 refuses what it is given
    passes = iter([False, not is_compiled])
    compile_blocks(backbone.vit, "on", unless=lambda: next(passes))
    backbone.vit.blocks[1](torch.ones(1, 17, 24))
    with pytest.raises(Exception, match=r"shape|size"):
        backbone.vit.blocks[1](torch.ones(1, 17, 23))
    assert not any(name in vars(m) for m in backbone.modules() for name in m._parameters)
