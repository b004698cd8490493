"""What ``format=peft`` promises: stock PEFT over stock timm computes the run's features, without this library."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.adapters.peft_folder import attach_peft
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError, WeightsError
from essa_dist.export.export import ExportConfig, export
from essa_dist.export.peft import write_adapter
from tests.export.runs import run_folder

CASES: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 3},
    "rslora": {"kind": "lora", "rank": 3, "rslora": True, "targets": ["v", "fc1"]},
    "pissa": {"kind": "lora", "rank": 2, "init": "pissa", "targets": ["q", "fc2"]},
    "dora": {"kind": "lora", "rank": 2, "dora": True, "targets": ["qkv", "proj"]},
    "pissa-dora": {"kind": "lora", "rank": 2, "dora": True, "init": "pissa", "targets": ["proj"]},
    "apla-full": {"kind": "apla"},
    "apla-5": {"kind": "apla", "rank": 5, "targets": ["proj", "q"]},
    "bitfit": {"kind": "bitfit"},
    "apla+bitfit": {"kind": "apla+bitfit", "rank": 3},
    "dora+apla": {
        "kind": "combined",
        "parts": [
            {"kind": "lora", "rank": 2, "dora": True, "targets": ["qkv"]},
            {"kind": "apla", "rank": 4, "targets": ["fc2"]},
        ],
    },
    "explora": {"kind": "explora", "rank": 2, "alpha": 3},
    "ln_tuning": {"kind": "ln_tuning"},
}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "init_values": 0.1}


def plain(vit_class: type = VisionTransformer, **settings: Any) -> Any:
    torch.manual_seed(0)
    vit: Any = vit_class(**SHAPE | settings, num_classes=0, dynamic_img_size=True)
    vit.pretrained_cfg = {}
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return vit.eval()


def adapted(case: dict[str, Any], vit_class: type = VisionTransformer, **shape: Any) -> list[Backbone]:
    """The plain model, the same with a trained adapter, and that merged."""
    base = Backbone(plain(vit_class, **shape), name="tiny")
    made = [base]
    for merge in (False, True):
        backbone = Backbone(plain(vit_class, **shape), name="tiny")
        adapter = inject_adapter(backbone, TypeAdapter(AdapterConfig).validate_python(case), seed=3)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for p in backbone.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=generator) * 0.1)
        if merge:
            adapter.merge(backbone)
        made.append(backbone.eval())
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor]]:
    """For each case its folder, and the features of the model in training."""
    made = {}
    for name, case in CASES.items():
        base, unmerged, merged = adapted(case)
        folder = tmp_path_factory.mktemp(name)
        write_adapter(folder, base, unmerged, merged)
        with torch.no_grad():
            made[name] = folder, unmerged.vit.forward_features(IMAGES)
    return made


STRANGER = """
import sys
sys.modules["essa_dist"] = None  # importing it fails
import torch
from safetensors.torch import load_file, save_file
try:
    import torchvision
except RuntimeError:  # beside a CPU build of torch it lacks two operators
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
import json
from peft import PeftModel
from timm.models.vision_transformer import VisionTransformer

folders, shape, given, out = json.loads(sys.argv[1])
given = load_file(given)
images = given.pop("images")
features = {}
for name, folder in folders.items():
    vit = VisionTransformer(**shape, num_classes=0, dynamic_img_size=True)
    vit.load_state_dict(given)
    model = PeftModel.from_pretrained(vit, folder).eval()
    with torch.no_grad():
        features[name] = model.get_base_model().forward_features(images).contiguous()
        features[name + "/merged"] = model.merge_and_unload().forward_features(images).contiguous()
assert "essa_dist.adapters" not in sys.modules
save_file(features, out)
"""


def test_stock_peft_and_timm_give_the_adapted_features_where_this_library_can_t_be_imported(
    folders: dict[str, tuple[Path, Tensor]], tmp_path: Path
) -> None:
    given, out = tmp_path / "given.safetensors", tmp_path / "features.safetensors"
    save_file(plain().state_dict() | {"images": IMAGES}, given)
    told = json.dumps([{name: str(f) for name, (f, _) in folders.items()}, SHAPE, str(given), str(out)])
    subprocess.run([sys.executable, "-W", "ignore", "-c", STRANGER, told], check=True)
    found = load_file(out)
    with torch.no_grad():
        base = plain().forward_features(IMAGES)
    for name, (_, wanted) in folders.items():
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-5, msg=name)
        torch.testing.assert_close(found[f"{name}/merged"], wanted, rtol=0, atol=1e-5, msg=f"{name}, merged")
        assert not torch.allclose(wanted, base, atol=1e-3), name


def test_apla_is_a_selection_of_rows_and_their_change(folders: dict[str, tuple[Path, Tensor]]) -> None:
    folder, _ = folders["apla-5"]
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 5, 5)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in ("blocks.0.attn.proj", "blocks.2.attn.qkv"):
        up = tensors[f"base_model.model.{name}.lora_B.weight"]
        assert up.unique().tolist() == [0, 1]
        assert up.sum(dim=0).tolist() == [1] * 5
        assert up.sum(dim=1).max() == 1


def test_a_row_that_training_left_where_it_was_is_selected_all_the_same(tmp_path: Path) -> None:
    base, unmerged, merged = adapted({"kind": "apla", "rank": 5})
    layer = unmerged.vit.blocks[1].attn.proj
    row = int(layer.rows[2])
    for weight, index in ((layer.weight, 2), (merged.vit.blocks[1].attn.proj.weight, row)):
        weight.data[index] = base.vit.blocks[1].attn.proj.weight[row]
    write_adapter(tmp_path, base, unmerged, merged)
    up = load_file(tmp_path / "adapter_model.safetensors")[
        "base_model.model.blocks.1.attn.proj.lora_B.weight"
    ]
    assert up.argmax(dim=0).tolist() == layer.rows.tolist()


def test_what_was_written_loads_here_too(folders: dict[str, tuple[Path, Tensor]]) -> None:
    for name, (folder, wanted) in folders.items():
        base = Backbone(plain(), name="tiny")
        backbone, adapter = attach_peft(base, folder)
        with torch.no_grad():
            torch.testing.assert_close(
                backbone.vit.forward_features(IMAGES), wanted, rtol=0, atol=1e-5, msg=name
            )
            adapter.merge(backbone)
            torch.testing.assert_close(
                backbone.vit.forward_features(IMAGES), wanted, rtol=0, atol=1e-5, msg=name
            )


def test_other_base_weights_are_refused_here(folders: dict[str, tuple[Path, Tensor]]) -> None:
    base = Backbone(plain(), name="tiny")
    base.vit.blocks[0].mlp.fc1.weight.data[0, 0] += 1e-3
    with pytest.raises(WeightsError, match="was trained over other weights"):
        attach_peft(base, folders["lora"][0])


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"kind": "full"}, r"no place for cls_token, pos_embed"),
        ({"kind": "frozen"}, r"nothing was: use format=timm"),
        ({"kind": "ssf"}, r"larger than the model"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_an_adapter_that_the_form_can_t_hold_is_refused_by_name(
    case: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        write_adapter(tmp_path, *adapted(case))
    assert not list(tmp_path.iterdir())


def test_a_change_that_plain_timm_would_pass_by_is_refused(tmp_path: Path) -> None:
    models = adapted({"kind": "apla", "targets": ["v"]}, Eva, use_rot_pos_emb=True, ref_feat_shape=(4, 4))
    with pytest.raises(UsageError, match=r"blocks.0.attn.qkv without calling the layer"):
        write_adapter(tmp_path, *models)


def test_a_run_is_exported_checked_and_told_how_to_load(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", {"kind": "lora", "rank": 3})
    result = export(ExportConfig(run=str(run), out=str(tmp_path / "out"), format="peft"))
    assert result["max_difference"] <= 1e-5
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(result["files"])
    assert result["files"]["adapter_model.safetensors"] < 0.2 * result["model_bytes"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'timm.create_model("test_vit", num_classes=0' in card
    assert 'PeftModel.from_pretrained(base, ".")' in card


def test_a_model_that_is_no_run_has_nothing_to_write(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", {"kind": "apla", "rank": 2})
    export(ExportConfig(run=str(run), out=str(tmp_path / "timm"), format="timm"))
    with pytest.raises(
        UsageError, match=r"format=peft writes what a run trained, and .* is not a run folder"
    ):
        export(ExportConfig(run=str(tmp_path / "timm"), out=str(tmp_path / "out"), format="peft"))


def test_targets_are_in_order_whatever_the_hash_seed(folders: dict[str, tuple[Path, Tensor]]) -> None:
    for folder, _ in folders.values():
        targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        assert targets == sorted(targets)
