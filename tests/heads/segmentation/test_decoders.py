"""The contract of every decoder: logits of every pixel, every tensor learns, alone or in any batch."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from essa_dist.adapters import Branches
from essa_dist.backbones import Backbone, BackboneConfig, build_architecture
from essa_dist.backbones.layers import Layers, layer_features
from essa_dist.errors import UsageError
from essa_dist.heads.segmentation import DECODERS, Decoder, DecoderConfig, build_decoder, decode

K, WIDTH, B = 5, 24, 3
CASES: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "linear", "last": 4},
    {"kind": "setr_pup", "channels": 6},
    {"kind": "setr_pup", "channels": 8, "stages": 2, "auxiliary_weight": 0},
    {"kind": "dpt", "channels": 6},
]
each = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
IMAGES = torch.randn(B, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def trunk(depth: int = 6) -> Backbone:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "depth": depth, "num_heads": 2}
    vit: Any = VisionTransformer(
        **size, num_classes=0, global_pool="", dynamic_img_size=True, no_embed_class=True, reg_tokens=2
    )
    vit.pretrained_cfg = {}
    return Backbone(vit, name="tiny")


def built(case: dict[str, Any], backbone: Backbone, seed: int = 0) -> Decoder:
    config: Any = TypeAdapter(DecoderConfig).validate_python(case)
    return build_decoder(config, backbone, K, seed=seed)


def test_every_decoder_has_a_case() -> None:
    assert {case["kind"] for case in CASES} == set(DECODERS)


@each
@pytest.mark.parametrize("size", [(12, 20), (4, 4), (4, 28), (44, 8)])
@torch.no_grad()
def test_every_pixel_gets_logits_whatever_the_size(case: dict[str, Any], size: tuple[int, int]) -> None:
    backbone = trunk().eval()
    decoded = decode(backbone, built(case, backbone).eval(), torch.randn(2, 3, *size))
    assert decoded.logits.shape == (2, K, *size)
    assert decoded.auxiliary == ()
    assert decoded.logits.isfinite().all()


@each
@torch.no_grad()
def test_an_image_gets_the_same_logits_alone_as_in_a_batch_in_training_too(case: dict[str, Any]) -> None:
    # What BatchNorm would break, and with it the equality of one process and many.
    backbone = trunk().eval()
    decoder = built(case, backbone).train()
    together = decode(backbone, decoder, IMAGES)
    for i in range(B):
        alone = decode(backbone, decoder, IMAGES[i : i + 1])
        for one, of_all in zip(
            (alone.logits, *alone.auxiliary), (together.logits, *together.auxiliary), strict=True
        ):
            torch.testing.assert_close(one[0], of_all[i], rtol=1e-4, atol=1e-5)


@each
def test_every_tensor_of_trunk_and_decoder_gets_a_gradient(case: dict[str, Any]) -> None:
    backbone = trunk()
    decoder = built(case, backbone).train()
    backbone.mask_token.requires_grad_(False)
    decoded = decode(backbone, decoder, IMAGES)
    loss = decoder.total_loss(decoded, lambda logits: (logits - 1).square().mean())
    loss.backward()
    for module in (backbone, decoder):
        for name, p in module.named_parameters():
            if p.requires_grad:
                assert p.grad is not None, name
                assert p.grad.any(), name


@each
def test_trained_tensors_are_seen_by_branches_and_computed_in_bf16(case: dict[str, Any]) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = trunk().requires_grad_(False)
            self.head = built(case, self.backbone)

        def forward(self, images: Tensor) -> Any:
            return decode(self.backbone, self.head, images)

    model = Both()
    branches = Branches(model, compute_dtype=torch.bfloat16)
    model.backbone.bfloat16()
    for teacher in branches.teachers.values():
        teacher.data.zero_()
    decoded = model(IMAGES.bfloat16())
    assert decoded.logits.dtype == torch.float32
    torch.stack([x.square().mean() for x in (decoded.logits, *decoded.auxiliary)]).sum().backward()
    for name, p in branches.students.items():
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()
    with branches.teacher():  # of zeros: a tensor whose module is not entered would be the student's
        assert not model(IMAGES.bfloat16()).logits.any()


@each
@torch.no_grad()
def test_bf16_gives_nearly_the_logits_of_fp32(case: dict[str, Any]) -> None:
    backbone = trunk().eval()
    decoder = built(case, backbone).eval()
    layers = layer_features(backbone, IMAGES, decoder.blocks)
    exact = decoder(layers, (12, 20)).logits
    half = Layers(tuple(x.bfloat16() for x in layers.patches), layers.grid)
    rounded = decoder.bfloat16()(half, (12, 20)).logits
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()


@each
def test_a_few_steps_learn_a_pattern_of_the_image(case: dict[str, Any]) -> None:
    backbone = trunk().requires_grad_(False)
    decoder = built(case, backbone)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(2)).round()
    images = (
        images[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)
    )  # each patch of one colour
    targets = images[:, 0].long() + 2 * images[:, 1].long()
    layers = layer_features(backbone, images, decoder.blocks)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        decoded = decoder(layers, (16, 16))
        decoder.total_loss(decoded, lambda logits: nn.functional.cross_entropy(logits, targets)).backward()
        optimizer.step()
    right = (decoder.eval()(layers, (16, 16)).logits.argmax(1) == targets).float().mean()
    assert right > 0.6  # by chance 0.25


@each
def test_weights_come_from_the_seed_not_from_the_global_rng(case: dict[str, Any]) -> None:
    backbone = trunk()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = built(case, backbone, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = built(case, backbone, seed=3).state_dict(), built(case, backbone, seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def test_linear_is_a_norm_and_a_matrix_on_each_patch() -> None:
    backbone = trunk().eval()
    decoder: Any = built({"kind": "linear", "last": 2}, backbone).eval()
    layers = layer_features(backbone, IMAGES, (4, 5))
    logits = decoder(layers, layers.grid).logits  # at the size of the grid nothing is resized
    for patch in (0, 7, 14):
        both = torch.cat([x[1, patch] for x in layers.patches])
        expected = decoder.classify.weight[:, :, 0, 0] @ decoder.norm(both) + decoder.classify.bias
        torch.testing.assert_close(logits[1, :, patch // 5, patch % 5], expected)


def test_setr_has_three_auxiliary_heads_in_training_whose_weight_counts() -> None:
    backbone = trunk(depth=24)
    decoder = built({"kind": "setr_pup", "channels": 6}, backbone)
    assert decoder.blocks == (9, 14, 19, 23)
    decoded = decode(backbone, decoder, IMAGES[:1])
    assert [x.shape for x in decoded.auxiliary] == [decoded.logits.shape] * 3
    values = iter([1.0, 10.0, 20.0, 30.0])
    total = decoder.total_loss(decoded, lambda _: torch.tensor(next(values)))
    assert total.item() == pytest.approx(1 + 0.4 * 60)


def test_dpt_of_vit_b_has_the_papers_blocks_and_widths() -> None:
    with torch.device("meta"):
        decoder: Any = built({"kind": "dpt"}, build_architecture(BackboneConfig(name="vit_base_patch16_224")))
    assert decoder.blocks == (2, 5, 8, 11)
    assert [conv.out_channels for conv in decoder.project] == [96, 192, 384, 768]


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"decoder\.last=7 is more than the 6 blocks of tiny"):
        built({"kind": "linear", "last": 7}, trunk())
    with pytest.raises(ValidationError, match=r"extra_forbidden|Extra inputs"):
        built({"kind": "linear", "chanels": 7}, trunk())
    short: Any = TypeAdapter(DecoderConfig).validate_python("dpt")
    assert short.kind == "dpt"
