"""The official code's module takes the file as it is. That code can't be installed; its names and shapes are known."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from essa_dist.backbones import Backbone
from essa_dist.errors import WeightsError


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, *, bias: bool, scaled: bool, swiglu: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads, bias=bias), (SwiGLU if swiglu else MLP)(dim, hidden)
        self.ls1, self.ls2 = (Scale(dim) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DinoVisionTransformer(nn.Module):
    """What the official class of this name computes at its native size, with its arguments and names."""

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        init_values: float | None,
        ffn_layer: str,
        block_chunks: int,
        num_register_tokens: int = 0,
    ) -> None:
        super().__init__()
        assert block_chunks == 0
        token = partial(torch.zeros, 1)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)})
        self.cls_token, self.mask_token = nn.Parameter(token(1, embed_dim)), nn.Parameter(token(embed_dim))
        self.pos_embed = nn.Parameter(token(1 + (img_size // patch_size) ** 2, embed_dim))
        if num_register_tokens:
            self.register_tokens = nn.Parameter(token(num_register_tokens, embed_dim))
        self.n_registers = num_register_tokens
        kind = {"bias": qkv_bias, "scaled": bool(init_values), "swiglu": ffn_layer == "swiglu"}
        blocks = [Block(embed_dim, num_heads, int(embed_dim * mlp_ratio), **kind) for _ in range(depth)]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(embed_dim, eps=1e-6)

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        if self.n_registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(images), -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"x_norm_clstoken": x[:, 0], "x_norm_patchtokens": x[:, 1 + self.n_registers :]}


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's import finds the class above."""
    module = ModuleType("dinov2.models.vision_transformer")
    vars(module)["DinoVisionTransformer"] = DinoVisionTransformer
    for name in ("dinov2", "dinov2.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def unread(exporter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison, which would have to build the trunk by a name of timm's."""
    compared = {"tolerance": 0.0, "max_difference": 0.0, "max_difference_resized": 0.0, "resized_to": 8}
    monkeypatch.setattr(exporter, "compare", lambda *_: compared)


@pytest.mark.usefixtures("official", "unread")
@pytest.mark.parametrize("shape", ["plain", "scaled", "registers", "swiglu", "grey"])
@torch.no_grad()
def test_the_code_in_the_card_loads_every_tensor_and_gives_the_features(
    shape: str,
    small: Callable[..., Backbone],
    write: Callable[..., Any],
    card_code: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = small(shape)
    out, _ = write(backbone, "dinov2")
    images = torch.randn(
        2,
        backbone.vit.patch_embed.proj.in_channels,
        16,
        16,
        generator=torch.Generator().manual_seed(1),
    )
    names: dict[str, Any] = {"images": images}
    (block,) = card_code(out)
    monkeypatch.chdir(out)
    exec(block, names)
    ours = backbone(images)
    torch.testing.assert_close(names["cls"], ours.cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(names["patches"], ours.patches, rtol=0, atol=1e-5)
    torch.testing.assert_close(names["model"].mask_token, backbone.mask_token)


@pytest.mark.usefixtures("unread")
def test_names_and_shapes_are_those_of_the_official_code(
    small: Callable[..., Backbone], write: Callable[..., Any], shared: Path
) -> None:
    """Of a tiny model that facebookresearch/dinov2 made: 28 px, patch 7, width 48, three blocks."""
    arguments = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}
    out, _ = write(small("scaled", **arguments), "dinov2")
    prefix = "teacher.backbone."
    with safe_open(shared / "fixtures" / "dinov2_sinkhorn_shared.safetensors", "pt") as golden:
        names = [name for name in golden.keys() if name.startswith(prefix)]  # noqa: SIM118
        official = {name.removeprefix(prefix): golden.get_slice(name).get_shape() for name in names}
    assert {name: list(t.shape) for name, t in load_file(out / "model.safetensors").items()} == official


def test_both_files_hold_the_same_plain_tensors(
    untrained: Callable[..., Backbone], write: Callable[..., Any]
) -> None:
    out, found = write(untrained("test_vit"), "dinov2")
    assert found["max_difference"] <= 1e-5
    safe = load_file(out / "model.safetensors")
    pickled = torch.load(out / "dinov2_pretrain.pth", weights_only=True)
    assert type(pickled) is dict
    assert pickled.keys() == safe.keys()
    assert all(torch.equal(tensor, safe[name]) for name, tensor in pickled.items())


@pytest.mark.parametrize(
    ("shape", "others", "missing"),
    [
        ("dinov3", {}, "rotary position embeddings"),
        ("plain", {"act_layer": "quick_gelu"}, "the activation"),
        ("plain", {"norm_layer": partial(nn.LayerNorm, eps=1e-5)}, "the epsilon 1e-05 of the norms"),
    ],
)
def test_a_trunk_that_the_official_code_would_compute_otherwise_is_refused(
    shape: str,
    others: dict[str, Any],
    missing: str,
    small: Callable[..., Backbone],
    write: Callable[..., Any],
) -> None:
    with pytest.raises(WeightsError, match=f"DINOv2's layout has no place for {missing}"):
        write(small(shape, **others), "dinov2")
