"""Weights of every layout give the features that their own code would give."""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from essa_dist.backbones import Backbone, BackboneConfig, build, build_architecture, build_backbone
from essa_dist.backbones.formats import FORMATS, dinov2, find_format, huggingface
from essa_dist.backbones.formats.fitting import fit
from essa_dist.backbones.formats.guess import guess_architecture
from essa_dist.backbones.formats.names import Notes
from essa_dist.backbones.formats.prefixes import take_trunk
from essa_dist.backbones.weights import EMBEDDED, load_into, misfits, parameters_sha256
from essa_dist.errors import UsageError, WeightsError
from essa_dist.export.models import load_model

SIZE, PATCH, WIDTH, DEPTH, HEADS = 12, 4, 24, 3, 2  # pixels, pixels, features, blocks, heads
TRUNKS = {
    "plain": "vit_tiny_patch16_224",
    "dinov2": "vit_base_patch14_dinov2",
    "dinov2_reg": "vit_base_patch14_reg4_dinov2",
    "dinov2_swiglu": "vit_giant_patch14_reg4_dinov2",
    "dinov3": "vit_small_patch16_dinov3",
    "dinov3_qkvb": "vit_small_patch16_dinov3_qkvb",
    "dinov3_plus": "vit_small_plus_patch16_dinov3",
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tiny_plain`` and so on are the architectures above with few features."""
    shape = {
        "img_size": SIZE,
        "patch_size": PATCH,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
    }
    others = {"eva02": "eva02_tiny_patch14_224", "rope": "vit_small_patch16_rope_224"}
    for kind, name in (TRUNKS | others).items():
        monkeypatch.setitem(build.ALIASES, f"tiny_{kind}", (name, shape))


def trunk(kind: str, **settings: Any) -> Backbone:
    """A tiny trunk with random values in every tensor."""
    backbone = build_architecture(BackboneConfig(name=f"tiny_{kind}", pos_embed="timm", **settings))
    return randomised(backbone).eval()


def randomised(module: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def loaded(kind: str, path: Path, **settings: Any) -> Backbone:
    config = BackboneConfig(name=f"tiny_{kind}", pos_embed="timm", weights=str(path), **settings)
    return build_backbone(config, seed=7).eval()


def tensors(backbone: Backbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.vit.state_dict().items()}


def images(size: int = SIZE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(backbone: Backbone) -> Tensor:
    cls, patches = backbone(images())
    return torch.cat([cls[:, None], patches], dim=1)


# --- transformers ---------------------------------------------------------------------------------------------

Make = Callable[..., nn.Module]
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": SIZE,
    "patch_size": PATCH,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Dinov2Model": ("dinov2", "Dinov2Config", {}),
    "Dinov2WithRegistersModel": (
        "dinov2_swiglu",
        "Dinov2WithRegistersConfig",
        {"num_register_tokens": 4, "use_swiglu_ffn": True},
    ),
    "Dinov2ForImageClassification": ("dinov2", "Dinov2Config", {}),
    "DINOv3ViTModel": ("dinov3_qkvb", "DINOv3ViTConfig", {"num_register_tokens": 4, "intermediate_size": 96}),
    "DINOv3ViTModel gated": (
        "dinov3_plus",
        "DINOv3ViTConfig",
        {"num_register_tokens": 4, "intermediate_size": 96, "use_gated_mlp": True, "hidden_act": "silu"}
        | {"query_bias": False, "value_bias": False},
    ),
    "ViTModel": ("plain", "ViTConfig", {"intermediate_size": 96}),
    "ViTMAEForPreTraining": (
        "plain",
        "ViTMAEConfig",
        {"intermediate_size": 96, "mask_ratio": 0.0}
        | {"decoder_hidden_size": WIDTH, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1},
    ),
}


def of_transformers(model: str) -> tuple[str, Any]:
    transformers = pytest.importorskip("transformers")
    kind, config, settings = MODELS[model]
    made = getattr(transformers, model.split()[0])(getattr(transformers, config)(**SHAPE, **settings))
    return kind, randomised(made).eval()


@pytest.mark.parametrize("model", MODELS)
def test_a_folder_of_transformers_gives_its_models_features(model: str, tmp_path: Path) -> None:
    kind, theirs = of_transformers(model)
    theirs.save_pretrained(tmp_path)
    backbone = loaded(kind, tmp_path)
    inner = getattr(theirs, theirs.base_model_prefix) if "For" in model else theirs
    with torch.no_grad():
        expected = inner(images()).last_hidden_state
    if "MAE" in model:  # shuffles the patches even where it masks none: only the class token can be compared
        torch.testing.assert_close(features(backbone)[:, 0], expected[:, 0], rtol=0, atol=1e-5)
        return
    registers = backbone.num_prefix_tokens - 1
    expected = torch.cat([expected[:, :1], expected[:, 1 + registers :]], dim=1)
    torch.testing.assert_close(features(backbone), expected, rtol=0, atol=1e-5)
    if (mask := getattr(inner.embeddings, "mask_token", None)) is not None:
        assert torch.equal(backbone.mask_token, mask.reshape(1, WIDTH))


def test_one_file_parts_and_modules_of_transformers_load_alike(tmp_path: Path) -> None:
    kind, theirs = of_transformers("Dinov2Model")
    for name in ("whole", "parts", "bin", "module"):
        (tmp_path / name).mkdir()
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    of_old = {"_use_new_zipfile_serialization": False}  # as before torch 1.6
    torch.save(load_file(tmp_path / "whole/model.safetensors"), tmp_path / "bin/pytorch_model.bin", **of_old)
    torch.save(theirs.state_dict(), tmp_path / "module/new_names.pth")
    places = ("whole", "whole/model.safetensors", "parts", "bin", "module/new_names.pth")
    assert len({parameters_sha256(loaded(kind, tmp_path / place)) for place in places}) == 1
    hashes = {place: loaded(kind, tmp_path / place).weights_sha256 for place in ("whole", "parts")}
    assert len(set(hashes.values())) == 2
    first = next((tmp_path / "parts").glob("model-*.safetensors"))
    lost, *rest = load_file(first).items()
    save_file(dict(rest), first)
    with pytest.raises(WeightsError, match=f"lists {lost[0]} and 0 more"):
        loaded(kind, tmp_path / "parts")
    first.unlink()
    with pytest.raises(WeightsError, match=r"weights file .*model-.* does not exist"):
        loaded(kind, tmp_path / "parts")


def test_the_epsilon_of_norms_and_the_pixel_statistics_come_from_the_configs(tmp_path: Path) -> None:
    kind, theirs = of_transformers("ViTModel")
    theirs.save_pretrained(tmp_path)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    backbone = loaded(kind, tmp_path)
    assert {m.eps for m in backbone.vit.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}
    assert "epsilon of norms set to 1e-12" in str(backbone.load_report)
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert loaded(kind, tmp_path, mean=(0.5, 0.4, 0.3)).mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads is 3 in config.json, and 2 in this architecture"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is quick_gelu"),
        ({"model_type": "clip"}, "model_type clip of config.json is none of dinov2"),
    ],
)
def test_what_shapes_hide_is_read_from_the_config(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = trunk("dinov2")
    state = huggingface.from_timm(tensors(source), source.vit)
    config = {"model_type": "dinov2", "num_attention_heads": HEADS, "hidden_act": "gelu"}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(features(loaded("dinov2", tmp_path)), features(source))
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError, match=message):
        loaded("dinov2", tmp_path)


def test_another_rotary_base_is_refused(tmp_path: Path) -> None:
    kind, theirs = of_transformers("DINOv3ViTModel")
    theirs.config.rope_theta = 77.0
    theirs.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"rope_theta is 77.0 .* and 100.0"):
        loaded(kind, tmp_path)


# --- both directions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [dinov2, huggingface], ids=["DINOv2", "transformers"])
@pytest.mark.parametrize("kind", TRUNKS)
def test_there_and_back_is_the_same_trunk(layout: Any, kind: str) -> None:
    source = trunk(kind)
    state = tensors(source) | {"mask_token": source.mask_token.data}
    theirs = layout.from_timm(dict(state), source.vit)
    assert FORMATS[find_format(theirs)] is layout
    notes = Notes()
    back = layout.to_timm(theirs, source.vit, notes)
    assert torch.equal(back.pop("mask_token"), state.pop("mask_token"))
    back = fit(back, source.vit, notes)
    assert misfits(state, back, here=kind) == ""
    assert all(torch.equal(state[name], tensor) for name, tensor in back.items())


@pytest.mark.parametrize("layout", [dinov2, huggingface], ids=["DINOv2", "transformers"])
def test_a_trunk_that_a_layout_cannot_hold_is_refused(layout: Any) -> None:
    source = trunk("plain")
    strange = tensors(source) | {"blocks.0.attn.q_norm.weight": torch.ones(12), "other": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"no place for blocks.0.attn.q_norm.weight and 1 more"):
        layout.from_timm(strange, source.vit)


@pytest.mark.parametrize("layout", [dinov2, huggingface], ids=["DINOv2", "transformers"])
def test_weights_fill_their_own_architecture_or_are_refused(layout: Any, tmp_path: Path) -> None:
    for kind in TRUNKS:
        source = trunk(kind)
        save_file(layout.from_timm(tensors(source), source.vit), tmp_path / "w.safetensors")
        for other in [*TRUNKS, "eva02", "rope"]:
            try:
                backbone = loaded(other, tmp_path / "w.safetensors")
            except WeightsError:
                assert other != kind
            else:  # where it fits another shape, nothing of it may be lost
                torch.testing.assert_close(features(backbone), features(source), rtol=0, atol=1e-5)


# --- DINOv2 and DINOv3 ----------------------------------------------------------------------------------------


def hub_shapes(
    width: int, depth: int, positions: int, *, gated: int = 0, registers: int = 0
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of DINOv2's released files, written down from the upstream modules."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    for block in range(depth):
        wide = (
            {"w12": (2 * gated, width), "w3": (width, gated)}
            if gated
            else {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
        )
        layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)} | {
            f"mlp.{k}": v for k, v in wide.items()
        }
        for name, shape in layers.items():
            shapes[f"blocks.{block}.{name}.weight"], shapes[f"blocks.{block}.{name}.bias"] = shape, shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    return shapes


def dinov3_shapes(width: int, depth: int, *, gated: int = 0) -> dict[str, tuple[int, ...]]:
    """The same of DINOv3."""
    shapes = hub_shapes(width, depth, 1)
    del shapes["pos_embed"]
    shapes |= {"storage_tokens": (1, 4, width), "rope_embed.periods": (16,)}
    shapes["patch_embed.proj.weight"] = (width, 3, 16, 16)
    for block in range(depth):
        shapes[f"blocks.{block}.attn.qkv.bias_mask"] = (3 * width,)
        for name in ("fc1", "fc2") if gated else ():
            del shapes[f"blocks.{block}.mlp.{name}.weight"], shapes[f"blocks.{block}.mlp.{name}.bias"]
        for name, shape in (
            {"w1": (gated, width), "w2": (gated, width), "w3": (width, gated)}.items() if gated else ()
        ):
            shapes[f"blocks.{block}.mlp.{name}.weight"], shapes[f"blocks.{block}.mlp.{name}.bias"] = (
                shape,
                shape[:1],
            )
    return shapes


def of_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Zeros that take no memory."""
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    if "rope_embed.periods" in state:
        state["rope_embed.periods"] = (100.0 ** (torch.arange(16) / 16)).bfloat16()
    return state


RELEASED = {
    "vit_small_patch14_dinov2": hub_shapes(384, 12, 1370),
    "vit_large_patch14_reg4_dinov2": hub_shapes(1024, 24, 1370, registers=4),
    "vit_giant_patch14_dinov2": hub_shapes(1536, 40, 1370, gated=4096),
    "vit_small_patch16_dinov3": dinov3_shapes(384, 12),
    "vit_small_plus_patch16_dinov3": dinov3_shapes(384, 12, gated=1536),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_names_and_shapes_of_released_files_fill_their_architecture(name: str) -> None:
    state = of_shapes(RELEASED[name])
    assert guess_architecture(state) == name
    assert guess_architecture({f"teacher.backbone.{k}": v for k, v in state.items()}) == name
    with torch.device("meta"):
        vit = build_architecture(BackboneConfig(name=name)).vit
    if hasattr(vit, "rope"):
        vit.rope.periods = vit.rope._compute_periods(device=torch.device("cpu"))
    notes = Notes()
    taken = dinov2.to_timm(state, vit, notes)
    assert taken.pop("mask_token").numel() == vit.embed_dim
    assert misfits(vit.state_dict(), fit(taken, vit, notes), here=name) == ""


def chunked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As FSDP's block chunks name them: the first two blocks are in chunk 0, the third in chunk 1."""

    def name(old: str) -> str:
        if not old.startswith("blocks."):
            return old
        _, number, rest = old.split(".", 2)
        return f"blocks.{int(number) // 2}.{number}.{rest}"

    return {name(old): tensor for old, tensor in state.items()}


def test_the_teacher_of_a_training_checkpoint_is_taken_chunks_and_all(tmp_path: Path) -> None:
    teacher, student = trunk("dinov2"), trunk("dinov2")
    state = chunked(
        dinov2.from_timm(tensors(teacher) | {"mask_token": torch.full((1, WIDTH), 2.0)}, teacher.vit)
    )
    head = {"dino_head.last_layer.weight_g": torch.ones(5, 1), "ibot_head.mlp.0.bias": torch.ones(7)}
    both = {f"teacher.backbone.{name}": tensor for name, tensor in state.items()}
    both |= {f"student.backbone.{name}": tensor + 1 for name, tensor in tensors(student).items()}
    files = {
        "teacher_checkpoint.pth": {"teacher": {f"backbone.{k}": v for k, v in state.items()} | head},
        "ddp.pth": {"teacher": {f"module.backbone.{k}": v for k, v in state.items()}, "epoch": 3},
        "model.pth": {"model": both | {"dino_loss.center": torch.ones(1, 5)}, "iteration": 5},
    }
    for name, held in files.items():
        torch.save(held, tmp_path / name)
        backbone = loaded("dinov2", tmp_path / name)
        assert torch.equal(features(backbone), features(teacher)), name
        assert bool((backbone.mask_token == 2).all())
    report = loaded("dinov2", tmp_path / "teacher_checkpoint.pth").load_report
    assert report is not None
    assert ("blocks.1.2.norm1.weight", "blocks.2.norm1.weight") in report.renamed
    assert ("teacher.dino_head.last_layer.weight_g", "not in teacher.backbone.*") in report.dropped
    assert report.loaded == len(tensors(teacher))


def test_two_trunks_of_which_none_is_the_teacher_are_refused(tmp_path: Path) -> None:
    state = tensors(trunk("plain"))
    save_file(
        {f"{which}.{k}": v.clone() for which in "ab" for k, v in state.items()}, tmp_path / "w.safetensors"
    )
    with pytest.raises(WeightsError, match=r"holds 2 vision transformers \(a\., b\.\)"):
        loaded("plain", tmp_path / "w.safetensors")


def test_official_dinov2_states_give_official_features(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shared / "fixtures" / "dinov2_sinkhorn_separate.safetensors"
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}
    monkeypatch.setitem(build.ALIASES, "golden", (TRUNKS["dinov2"], shape))
    backbone = build_backbone(BackboneConfig(name="golden", weights=str(file), pos_embed="dinov2")).eval()
    golden = load_file(file)
    with torch.no_grad():
        ours = backbone(golden["global_crops"])
    cls = golden["teacher.x_norm_clstoken"]
    torch.testing.assert_close(ours.cls, cls, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2_swiglu", "dinov3", "dinov3_qkvb", "dinov3_plus"])
def test_hub_layouts_are_read_as_timm_reads_them(kind: str) -> None:
    from timm.models import eva, vision_transformer

    source = trunk(kind)
    state = {name: torch.randn_like(t) for name, t in dinov2.from_timm(tensors(source), source.vit).items()}
    for name in state:
        if name.endswith("qkv.bias"):
            state[name] = state[name] * (
                0 if kind != "dinov3_qkvb" else torch.tensor([1, 0, 1]).repeat_interleave(WIDTH)
            )
        if name.endswith("periods"):
            state[name] = source.vit.rope.periods.clone()
    timms = (eva if "dinov3" in kind else vision_transformer).checkpoint_filter_fn(dict(state), source.vit)
    notes = Notes()
    ours = dinov2.to_timm(state, source.vit, notes)
    assert ours.pop("mask_token") is state["mask_token"]
    ours = fit(ours, source.vit, notes)
    assert ours.keys() == timms.keys()
    assert all(torch.equal(ours[name], timms[name]) for name in ours)


@pytest.mark.parametrize(
    ("name", "kind", "value", "message"),
    [
        ("blocks.1.attn.qkv.bias", "dinov3", 0.1, "architecture ending in _qkvb"),
        ("rope_embed.periods", "dinov3", 7.0, "another rotary base"),
        ("cls_norm.weight", "dinov3", 1.0, "unexpected cls_norm.weight"),
    ],
)
def test_what_a_dinov3_trunk_would_not_apply_is_refused(
    name: str, kind: str, value: float, message: str, tmp_path: Path
) -> None:
    source = trunk(kind)
    state = dinov2.from_timm(tensors(source), source.vit)
    state[name] = torch.full_like(state.get(name, torch.ones(WIDTH)), value)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        loaded(kind, tmp_path / "w.safetensors")


# --- MAE and MRM ----------------------------------------------------------------------------------------------


def mae_file(path: Path, state: dict[str, Tensor], decoder: int) -> None:
    """A pretraining checkpoint as MAE's code saves it; MRM's has a report decoder, and a decoder as wide as the trunk."""
    extra = {
        "mask_token": torch.ones(1, 1, decoder),
        "decoder_pos_embed": torch.ones(1, 10, decoder),
        "decoder_embed.weight": torch.ones(decoder, WIDTH),
        "decoder_blocks.0.attn.qkv.weight": torch.ones(3 * decoder, decoder),
        "decoder_norm.weight": torch.ones(decoder),
        "decoder_pred.bias": torch.ones(48),
        "bert_encoder.model.bert.embeddings.word_embeddings.weight": torch.ones(9, 5),
        "bert_mlp.weight": torch.ones(5, WIDTH),
    }
    moments = {
        "state": {0: {"step": 3, "exp_avg": torch.ones(4)}},
        "param_groups": [{"lr": np.float64(1e-3)}],
    }
    args = argparse.Namespace(model="mae_vit_base_patch16", blr=np.float32(1e-4), mask_ratio=0.75)
    torch.save({"model": state | extra, "optimizer": moments, "epoch": 7, "scaler": {}, "args": args}, path)


@pytest.mark.parametrize("decoder", [16, WIDTH])
def test_the_encoder_of_a_masked_autoencoder_is_taken_and_never_its_decoders_mask_token(
    decoder: int, tmp_path: Path
) -> None:
    source = trunk("plain")
    mae_file(tmp_path / "mae.pth", tensors(source), decoder)
    backbone = loaded("plain", tmp_path / "mae.pth")
    assert torch.equal(features(backbone), features(source))
    assert bool((backbone.mask_token == 0).all())
    report = backbone.load_report
    assert report is not None
    assert report.format == "MAE"
    assert dict(report.dropped)["mask_token"] == "the image decoder's, not the trunk's"
    assert {"decoder_pred.bias", "bert_mlp.weight"} <= dict(report.dropped).keys()


def test_positions_of_patches_only_get_zero_for_the_class_token(tmp_path: Path) -> None:
    source = trunk("plain")
    state = tensors(source)
    state["pos_embed"] = state["pos_embed"][:, 1:]
    mae_file(tmp_path / "mae.pth", state, 16)
    backbone = loaded("plain", tmp_path / "mae.pth")
    with torch.no_grad():
        source.vit.pos_embed[:, 0] = 0
    assert torch.equal(features(backbone), features(source))
    assert "1 resized" in str(backbone.load_report)


def test_a_fine_tuned_average_pooling_vit_gives_its_norm_to_the_tokens(tmp_path: Path) -> None:
    source = trunk("plain")
    state = tensors(source)
    state |= {f"fc_norm.{part}": state.pop(f"norm.{part}") for part in ("weight", "bias")}
    state |= {"head.weight": torch.ones(5, WIDTH), "head.bias": torch.ones(5)}
    torch.save({"model": state}, tmp_path / "cxr.pth")
    backbone = loaded("plain", tmp_path / "cxr.pth")
    assert torch.equal(features(backbone), features(source))
    report = backbone.load_report
    assert report is not None
    assert ("fc_norm.weight", "norm.weight") in report.renamed
    assert [name for name, _ in report.dropped] == ["head.weight", "head.bias"]


# --- files ----------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, victim: str) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.mkdir, (self.victim,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda held, path: path.write_bytes(pickle.dumps(held, protocol=2))]
)
def test_a_hostile_pickle_names_what_it_asked_for_and_is_not_executed(
    save: Callable[[Any, Path], Any], tmp_path: Path
) -> None:
    victim = tmp_path / "executed"
    save({"model": {}, "args": argparse.Namespace(x=Bomb(str(victim)))}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth .*was not loaded: it holds a posix\.mkdir") as error:
        loaded("plain", tmp_path / "w.pth")
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's advice is to load it all the same
    assert not victim.exists()


def test_a_missing_tensor_is_an_error_until_it_is_allowed_by_name(tmp_path: Path) -> None:
    source = trunk("plain")
    state = {name: t for name, t in tensors(source).items() if not name.startswith("blocks.2.")}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        WeightsError, match=r"missing blocks.2.norm1.weight.*and 8 more.*backbone.allow_missing"
    ):
        loaded("plain", tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing blocks.2.mlp.fc1.weight"):
        loaded("plain", tmp_path / "w.safetensors", allow_missing=("blocks.2.*norm*", "blocks.2.attn.*"))
    backbone = loaded("plain", tmp_path / "w.safetensors", allow_missing=("blocks.2.*",))
    assert backbone.load_report is not None
    assert len(backbone.load_report.missing) == 12
    assert torch.equal(backbone.vit.blocks[1].mlp.fc1.weight, source.vit.blocks[1].mlp.fc1.weight)


def test_every_tensor_is_accounted_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = trunk("dinov2")
    state = {f"backbone.{k}": v for k, v in chunked(dinov2.from_timm(tensors(source), source.vit)).items()}
    state["backbone.pos_embed"] = torch.ones(1, 1 + 5 * 5, WIDTH)
    save_file(state | {"dino_head.mlp.0.bias": torch.ones(2)}, tmp_path / "w.safetensors")
    with caplog.at_level("DEBUG", logger="essa_dist"):
        report = load_into(trunk("dinov2"), tmp_path / "w.safetensors")
    assert report.loaded == len(tensors(source))
    assert report.dropped == (("dino_head.mlp.0.bias", "not in backbone.*"),)
    assert report.resized == (("pos_embed", (1, 26, WIDTH), (1, 10, WIDTH), "timm's bicubic interpolation"),)
    assert len(report.renamed) == DEPTH * 14
    counts = f"DINOv2 layout, {report.loaded} tensors, {len(report.renamed)} renamed, 1 resized, 1 dropped"
    assert str(report) == counts
    assert sum(counts in message for message in caplog.messages) == 1
    assert "renamed blocks.0.1.ls1.gamma -> blocks.1.ls1.gamma" in caplog.messages


# --- a model by its file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["folder", "folder/model.safetensors", "mae.pth"])
def test_a_model_may_be_a_folder_or_file_of_another_layout(where: str, tmp_path: Path) -> None:
    official = load_model(str(EMBEDDED["vit_tiny_patch16_224"]))
    (tmp_path / "folder").mkdir()
    state = huggingface.from_timm(tensors(official), official.vit)
    save_file(state, tmp_path / "folder/model.safetensors")
    (tmp_path / "folder/config.json").write_text(
        json.dumps({"model_type": "dinov2", "num_attention_heads": 3})
    )
    torch.save(
        {"model": tensors(official) | {"decoder_embed.weight": torch.ones(2, 2)}}, tmp_path / "mae.pth"
    )
    backbone = load_model(str(tmp_path / where))
    assert backbone.name == "vit_tiny_patch16_224"
    assert parameters_sha256(backbone.vit) == parameters_sha256(official.vit)


@pytest.mark.parametrize(
    "change",
    [
        {"reg_token": torch.zeros(1, 2, 384)},  # two registers
        {"blocks.12.norm1.weight": torch.zeros(384)},  # 13 blocks
        {"patch_embed.proj.weight": torch.zeros(384, 3, 15, 15)},
        {"blocks.0.mlp.w12.weight": torch.zeros(8, 384)},  # a gate at this size
    ],
)
def test_shapes_of_no_released_architecture_ask_for_its_name(change: dict[str, Tensor]) -> None:
    state = of_shapes(RELEASED["vit_small_patch14_dinov2"])
    plain = {name: tensor for name, tensor in state.items() if not name.endswith(".gamma")}
    for known in (state, plain):
        with pytest.raises(UsageError, match="name its architecture as model=timm_name@file"):
            guess_architecture(known | change)


def test_the_prefix_of_the_trunk_is_found() -> None:
    for prefix in ("", "module.", "visual.trunk.", "student.module.backbone."):
        notes = Notes()
        held = {
            f"{prefix}patch_embed.proj.weight": torch.ones(1),
            "text.patch_embed.proj.bias": torch.ones(2),
        }
        assert "patch_embed.proj.weight" in take_trunk(held, notes)
        assert len(notes.dropped) == bool(prefix)
