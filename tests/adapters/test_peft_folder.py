"""What plain PEFT saved over a timm ViT loads here, over a trunk that others share, and merges."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from essa_dist.adapters.apla import APLALinear
from essa_dist.adapters.peft_apla import attach_as_apla
from essa_dist.adapters.peft_folder import attach_peft
from essa_dist.backbones import Backbone
from essa_dist.errors import EssaError, UsageError, WeightsError

Tiny = Callable[..., Backbone]
Base = Callable[[], Backbone]
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
STOCK: dict[str, Any] = {
    "names": LoraConfig(r=3, target_modules=["qkv", "fc2"]),
    "regex": LoraConfig(
        r=3, target_modules=r"blocks\.1\.attn\.(proj|qkv)", use_rslora=True, bias="lora_only"
    ),
    "all": LoraConfig(r=2, target_modules="all-linear", bias="all"),
    "patterns": LoraConfig(
        r=3,
        target_modules=["attn.proj", "fc1"],
        rank_pattern={"fc1": 5},
        alpha_pattern={"blocks.0.mlp.fc1": 7},
    ),
    "dora": LoraConfig(r=2, target_modules=["attn.proj"], use_dora=True, modules_to_save=["norm"]),
    "pissa": LoraConfig(r=2, target_modules=["attn.proj"], init_lora_weights="pissa"),
    "lora_bias": LoraConfig(r=2, target_modules=["attn.proj"], lora_bias=True),
    "ln_tuning": peft.LNTuningConfig(target_modules=["norm1", "norm2"]),
    "ia3": peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
    "loha": peft.LoHaConfig(r=2, target_modules=["qkv"]),
    "vera": peft.VeraConfig(r=2, target_modules=["attn.proj"]),
    "hra": peft.HRAConfig(r=2, target_modules=["attn.proj"]),
}


@pytest.fixture
def base(tiny: Tiny) -> Base:
    return lambda: tiny(VisionTransformer, init_values=0.1).eval()


def kick(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.05)


def saved(vit: Any, config: Any, folder: Path) -> Tensor:
    """What plain PEFT leaves in ``folder`` after training ``vit``; its features."""
    torch.manual_seed(2)
    model: PeftModel = get_peft_model(vit, config)
    kick(model)
    model.eval().save_pretrained(str(folder))
    with torch.no_grad():
        features: Tensor = model.get_base_model().forward_features(IMAGES)
    return features


def features(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        out: Tensor = backbone.vit.forward_features(IMAGES)
    return out


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", STOCK)
def test_what_plain_peft_saved_loads_and_merges_and_the_trunk_stays_as_it_was(
    base: Base, method: str, tmp_path: Path
) -> None:
    wanted = saved(base().vit, STOCK[method], tmp_path)
    trunk = base()
    before = {name: p.detach().clone() for name, p in trunk.named_parameters()}
    state = torch.get_rng_state()
    backbone, adapter = attach_peft(trunk, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    close(features(backbone), wanted)
    assert not torch.allclose(wanted, features(trunk), atol=1e-3)
    shared = {id(p) for p in trunk.parameters()} & {id(p) for p in backbone.parameters()}
    assert len(shared) > 0.5 * len(before)
    assert not any(p.requires_grad for p in backbone.parameters())
    adapter.merge(backbone)
    close(features(backbone), wanted)
    assert {n: type(m) for n, m in backbone.named_modules()} == {n: type(m) for n, m in trunk.named_modules()}
    assert backbone.state_dict().keys() == trunk.state_dict().keys()
    assert all(torch.equal(p, before[name]) for name, p in trunk.named_parameters())


def test_several_folders_over_one_trunk_do_not_disturb_each_other(base: Base, tmp_path: Path) -> None:
    kinds = ("names", "all", "pissa")
    wanted = {kind: saved(base().vit, STOCK[kind], tmp_path / kind) for kind in kinds}
    trunk = base()
    attached = {kind: attach_peft(trunk, tmp_path / kind) for kind in kinds}
    for backbone, adapter in list(attached.values())[:1]:
        adapter.merge(backbone)
    for kind, (backbone, _) in attached.items():
        close(features(backbone), wanted[kind])


def test_a_classifier_that_was_saved_along_is_left_out(base: Base, tmp_path: Path) -> None:
    vit = base().vit
    vit.reset_classifier(5)
    wanted = saved(vit, LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"]), tmp_path)
    backbone, adapter = attach_peft(base(), tmp_path)
    adapter.merge(backbone)
    close(features(backbone), wanted)


def test_a_merge_that_peft_gets_wrong_is_an_error(base: Base, tmp_path: Path) -> None:
    saved(base().vit, peft.OFTConfig(r=0, oft_block_size=4, target_modules=["patch_embed.proj"]), tmp_path)
    backbone, adapter = attach_peft(base(), tmp_path)
    with pytest.raises(WeightsError, match=r"over patch_embed.proj into a layer that computes the same"):
        adapter.merge(backbone)


def selecting(base: Backbone, folder: Path, **change: Any) -> dict[str, Tensor]:
    """A stock LoRA that selects rows of two layers, written to ``folder``; its tensors."""
    names = ["blocks.0.attn.proj", "blocks.1.mlp.fc1"]
    biases = {name: base.vit.get_submodule(name).bias.detach().clone() for name in names}
    settings = {"r": 4, "lora_alpha": 4, "target_modules": names, "bias": "lora_only"} | change
    saved(base.vit, LoraConfig(**settings), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, rows in zip(names, ([9, 2, 20, 5], [60, 3, 95, 7]), strict=True):
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_B.weight"] = torch.eye(96)[: len(tensors[f"{prefix}.lora_B.weight"]), rows]
        if (key := f"{prefix}.base_layer.bias") in tensors:
            biases[name][rows] = tensors[key][rows]
            tensors[key] = biases[name]
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def test_a_lora_that_selects_rows_is_read_as_apla_and_can_be_trained_on(base: Base, tmp_path: Path) -> None:
    selecting(base(), tmp_path)
    trunk = base()
    before = {name: p.detach().clone() for name, p in trunk.named_parameters()}
    backbone, _ = attach_as_apla(trunk, tmp_path)
    expected = attach_peft(trunk, tmp_path)[0]
    close(features(backbone), features(expected))
    layers = {name: m for name, m in backbone.vit.named_modules() if isinstance(m, APLALinear)}
    assert {name: m.rows.tolist() for name, m in layers.items()} == {
        "blocks.0.attn.proj": [2, 5, 9, 20],
        "blocks.1.mlp.fc1": [3, 7, 60, 95],
    }
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {f"vit.{name}.{key}" for name in layers for key in ("weight", "bias")}
    kick(backbone)
    assert not torch.allclose(features(backbone), features(expected), atol=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in trunk.named_parameters())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lora_alpha": 8}, "does not select rows at scale 1"),
        ({"lora_bias": True}, "does not select rows at scale 1"),
        ({"use_dora": True}, "does not select rows at scale 1"),
        ({"modules_to_save": ["norm"]}, "norm.* was changed too"),
        ({"bias": "all"}, "was changed too"),
    ],
    ids=str,
)
def test_a_lora_of_another_form_is_not_read_as_apla(
    base: Base, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    selecting(base(), tmp_path, **change)
    with pytest.raises(UsageError, match=f"can't be read as APLA: .*{reason}"):
        attach_as_apla(base(), tmp_path)


def test_one_row_selected_twice_is_not_read_as_apla(base: Base, tmp_path: Path) -> None:
    tensors = selecting(base(), tmp_path)
    up = tensors["base_model.model.blocks.0.attn.proj.lora_B.weight"]
    up[:, 1] = up[:, 0]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="selects a row twice"):
        attach_as_apla(base(), tmp_path)


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no settings": (lambda f: without(f, "adapter_config.json"), "not a PEFT folder"),
    "no weights": (
        lambda f: without(f, "adapter_model.safetensors"),
        "has neither adapter_model.safetensors nor",
    ),
    "unknown method": (lambda f: edit(f, peft_type="APLA"), "of no method that this PEFT knows"),
    "other layers": (lambda f: edit(f, target_modules=["query"]), "does not fit tiny"),
    "more layers": (lambda f: edit(f, target_modules=["qkv", "fc1"]), "missing .*fc1.lora_A"),
    "truncated": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x10\0"), "can't be read"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_folder_that_can_t_be_used_is_one_line_that_names_it(base: Base, how: str, tmp_path: Path) -> None:
    saved(base().vit, LoraConfig(r=2, target_modules=["qkv"]), tmp_path)
    spoil, reason = BROKEN[how]
    spoil(tmp_path)
    with pytest.raises(EssaError, match=reason) as raised:
        attach_peft(base(), tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_folder_for_another_width_is_one_line_with_both_shapes(tiny: Tiny, tmp_path: Path) -> None:
    saved(tiny(VisionTransformer, embed_dim=36).vit, LoraConfig(r=2, target_modules=["qkv"]), tmp_path)
    with pytest.raises(WeightsError, match=r"does not fit tiny: .*36.*24") as raised:
        attach_peft(tiny(VisionTransformer), tmp_path)
    assert "\n" not in str(raised.value)


class Trap:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_a_pickle_is_read_without_executing_it(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(base().vit, LoraConfig(r=2, target_modules=["qkv"]), tmp_path)
    without(tmp_path, "adapter_model.safetensors")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(WeightsError, match="can't be read"):
        attach_peft(base(), tmp_path)
    torch.save({"x": Trap()}, tmp_path / "adapter_model.bin")
    with pytest.raises(WeightsError, match="can't be read"):
        attach_peft(base(), tmp_path)
    assert "executed" not in capsys.readouterr().out
