"""Every adapter in a whole run: it trains, its checkpoint holds nothing frozen, and it loads over a shared trunk."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from essa_dist import adapt
from essa_dist.adapters import ADAPTERS
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError, WeightsError
from essa_dist.export.attach import attach
from essa_dist.export.models import base_model, load_model
from essa_dist.runfolder import checkpoint_folder

IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(backbone: Backbone) -> torch.Tensor:
    out = backbone.eval()(IMAGES)
    return torch.cat([out.cls[:, None], out.patches], dim=1)


@pytest.mark.parametrize("kind", [*ADAPTERS, "apla_r2", "apla+bitfit", "vpt+lora"])
def test_a_run_loads_alone_and_over_a_shared_trunk(kind: str, recipe: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["adapter=apla", "adapter.rank=2"] if kind == "apla_r2" else [f"adapter={kind}"]
    summary = adapt(None, *recipe, *words, "duration=2")
    trained = load_file(checkpoint_folder(run, 2) / "student.safetensors")
    in_trunk = sum(t.numel() for name, t in trained.items() if name.startswith("backbone."))
    assert in_trunk == summary["trainable_parameters"]

    alone, base = load_model(str(run)), base_model(run)
    before = features(base)
    over, adapter = attach(base, str(run))
    torch.testing.assert_close(features(over), features(alone), rtol=0, atol=1e-5)
    assert torch.equal(features(base), before), "the base was changed"
    assert not any(p.requires_grad for model in (base, over) for p in model.parameters())
    shared = {id(p) for p in base.parameters()}
    own = sum(p.numel() for p in over.parameters() if id(p) not in shared)
    assert own == in_trunk, "the trunk is held twice"
    assert (alone.adapter_settings is None) == adapter.merges
    adapter.merge(over)
    torch.testing.assert_close(features(over), features(alone), rtol=0, atol=1e-5)
    assert torch.equal(features(base), before), "merging wrote into the shared trunk"
    student = load_model(f"student:{run}")
    assert torch.equal(features(student), features(alone)) == (kind == "frozen")


@pytest.mark.parametrize("kind", ["vpt+lora", "explora", "ssf"])
def test_resuming_ends_in_the_same_tensors(kind: str, recipe: list[str], tmp_path: Path) -> None:
    words = [f"adapter={kind}", "duration=4", "checkpoint.keep=9"]  # LoRA's dropout draws at every step
    adapt(None, *recipe, *words)
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(checkpoint_folder(resumed, 4))
    adapt(None, *recipe, *words, f"out={resumed}", "resume=true")
    for part in ("student", "teacher", "optimizer", "buffers"):
        one, two = (
            load_file(checkpoint_folder(folder, 4) / f"{part}.safetensors") for folder in (run, resumed)
        )
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_an_adapter_of_another_trunk_is_refused(recipe: list[str], tmp_path: Path) -> None:
    adapt(None, *recipe, "duration=2")
    with pytest.raises(WeightsError, match="trained on other pretrained weights"):
        attach(load_model("vit_tiny_patch16_224"), str(tmp_path / "run"))


def test_a_reference_to_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run folder"):
        attach(load_model("test_vit@random"), str(tmp_path))
