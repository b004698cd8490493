"""Activations in the host's memory: nothing changes but where they are."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from essa_dist.backbones import Backbone
from essa_dist.backbones import offload as offloading
from essa_dist.backbones.offload import offload_blocks
from essa_dist.backbones.recompute import recompute

IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def gradients(offload: bool, device: str = "cpu", **changes: float) -> list[Tensor]:
    torch.manual_seed(0)
    vit = VisionTransformer(
        16, 4, embed_dim=24, depth=3, num_heads=2, num_classes=0, global_pool="", **changes
    )
    vit.pretrained_cfg = {}
    if offload:
        recompute(vit, 2)
        offload_blocks(vit)
    backbone = Backbone(vit, name="tiny").train().to(device)
    backbone(IMAGES.to(device)).patches.square().sum().backward()
    return [p.grad.cpu() for p in backbone.parameters() if p.grad is not None]


def test_on_a_cpu_nothing_moves_and_nothing_changes() -> None:
    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(found, expected)


def test_it_ends_with_the_block_also_when_that_fails() -> None:
    vit = VisionTransformer(16, 4, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    offload_blocks(vit)
    with pytest.raises(RuntimeError):
        vit.blocks[1](torch.ones(1, 17, 23))
    x = torch.ones(3, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        x.square()  # the innermost hooks are asked: these, if no others were left behind
    assert kept


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.transpose(0, 2),
        lambda x: x.permute(2, 0, 3, 1)[1:],
        lambda x: x[:, ::2],
        lambda x: x[:, :1].expand(-1, 3, -1, -1),
    ],
    ids=["whole", "turned", "as q of qkv", "every other", "expanded"],
)
def test_a_view_goes_without_gaps_and_comes_back_as_it_lay(view: Callable[[Tensor], Tensor]) -> None:
    tensor = view(torch.randn(2, 3, 5, 7))
    gone = torch.empty_like(dense := offloading._without_gaps(tensor)).copy_(dense)
    assert gone.untyped_storage().nbytes() == 4 * tensor.numel()
    back = offloading._laid_out(gone, tensor.stride())
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride() or 0 in tensor.stride()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_gradients_are_equal_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "SMALLEST", 0)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # the patch embedding's gradient
    run = partial(gradients, device="cuda")
    for found, expected in zip(run(True), run(False), strict=True):
        assert torch.equal(found, expected)
