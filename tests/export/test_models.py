"""A model can be named in every way that the documentation says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from essa_dist.backbones import BackboneConfig, build_architecture
from essa_dist.backbones.weights import EMBEDDED
from essa_dist.errors import UsageError
from essa_dist.export.models import guess_architecture, load_model

TINY = EMBEDDED["vit_tiny_patch16_224"]


@pytest.mark.parametrize("ref", ["vit_tiny_patch16_224", str(TINY), f"vit_tiny_patch16_224@{TINY}"])
def test_name_file_and_both_give_the_same_model(ref: str) -> None:
    model = load_model(ref)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    reference = build_architecture(BackboneConfig(name="vit_tiny_patch16_224", weights=str(TINY)))
    assert model.vit.state_dict().keys() == reference.vit.state_dict().keys()
    assert model.vit.cls_token.abs().sum() > 0


def test_random_is_the_same_model_every_time() -> None:
    one, two = (load_model("test_vit@random") for _ in range(2))
    assert torch.equal(one.vit.cls_token, two.vit.cls_token)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("runs/nowhere", "is not there: give a timm name"),
        ("nowhere.safetensors", "is not there"),
        ("student:vit_tiny_patch16_224", "only a run folder has a student"),
        ("vit_tinny", "not a timm model"),
    ],
)
def test_a_wrong_reference_says_what_it_could_have_been(ref: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(ref)


def test_an_empty_folder_is_neither_run_nor_export(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run folder nor an export"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14"]
)
def test_the_architecture_is_read_off_the_tensors(name: str) -> None:
    with torch.device("meta"):
        backbone = build_architecture(BackboneConfig(name=name))
    assert guess_architecture(backbone.vit.state_dict()) == backbone.name


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(UsageError, match="fits no known ViT"):
        load_model(str(tmp_path / "resnet.safetensors"))
