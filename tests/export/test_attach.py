"""Adapters of PEFT put over a base model by reference, beside runs."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from essa_dist.errors import UsageError
from essa_dist.export.attach import attach
from essa_dist.export.models import load_model

NAME = "test_vit"
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """A base model's file, a LoRA folder that plain PEFT saved over it, and what plain PEFT computes with both."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    torch.manual_seed(0)
    vit: Any = timm.create_model(NAME, num_classes=0, dynamic_img_size=True, global_pool="token").eval()
    folder = tmp_path_factory.mktemp("lora")
    save_file(vit.state_dict(), folder / "base.safetensors")
    model = get_peft_model(
        vit, LoraConfig(r=3, target_modules=["attn.qkv", "mlp.fc1"], init_lora_weights=False)
    )
    model.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return folder / "base.safetensors", folder / "adapter", model.eval()(IMAGES)


def test_a_folder_of_plain_peft_goes_over_a_base_and_into_it(lora: tuple[Path, Path, torch.Tensor]) -> None:
    weights, folder, expected = lora
    base = load_model(f"{NAME}@{weights}")
    with torch.no_grad():
        before = base(IMAGES).cls
        over, _ = attach(base, str(folder))
        torch.testing.assert_close(over(IMAGES).cls, expected, rtol=0, atol=1e-5)
        assert torch.equal(base(IMAGES).cls, before)
        merged = load_model(f"{NAME}@{weights}+{folder}")
        torch.testing.assert_close(merged(IMAGES).cls, expected, rtol=0, atol=1e-5)
    assert merged.adapter_settings is None
    assert merged.vit.state_dict().keys() == base.vit.state_dict().keys()
    shared = {id(p) for p in base.parameters()}
    assert all(id(p) in shared for name, p in over.named_parameters() if "lora_" not in name)


def test_an_adapter_alone_is_no_model(lora: tuple[Path, Path, torch.Tensor]) -> None:
    _, folder, _ = lora
    with pytest.raises(UsageError, match=r"is an adapter of PEFT, not a model: write model=BASE\+"):
        load_model(str(folder))
    with pytest.raises(UsageError, match="neither a run folder nor a PEFT folder"):
        load_model(f"{NAME}@random+{folder}/nothing")
