"""Our modules give the features, losses, gradients and centres of the official DINOv2 code.

Reads every ``*.safetensors`` of the folder named by ESSA_FIXTURES (default ../shared/fixtures); see its README.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from essa_dist.adapters.full import Full, FullConfig
from essa_dist.backbones import Backbone
from essa_dist.data.batch import Batch
from essa_dist.heads import HeadConfig
from essa_dist.objectives import DINOv2Config, DINOv2Objective

FOLDER = Path(os.environ.get("ESSA_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures"))
FILES = sorted(FOLDER.glob("*.safetensors"))
PATCH = 7  # pixels; the README of the fixtures

pytestmark = pytest.mark.skipif(
    not FILES, reason=f"no golden values: ESSA_FIXTURES or ../shared/fixtures ({FOLDER.name})"
)


class Golden:
    """One file: its tensors, and our objective put into the official state before the step."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.meta: dict[str, str] = file.metadata()
            self.tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.objective = self._objective()
        self.batch = self._batch()

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}

    def _objective(self) -> DINOv2Objective:
        student = self.group("student.")
        backbone = self._backbone(student)
        Full(FullConfig()).inject(backbone, seed=0)
        separate = any(key.startswith("ibot_head.") for key in student)
        config = DINOv2Config(
            koleo_weight=float(self.meta["koleo_weight"]),
            centering="sinkhorn" if "sinkhorn" in self.meta["centering"] else "softmax",
            head=head_config(student, "dino_head."),
            ibot_head=head_config(student, "ibot_head.") if separate else "shared",
        )
        objective = DINOv2Objective(backbone, config, compute_dtype=torch.float32)
        for branch, tensors in (
            ("student", objective.branches.students),
            ("teacher", objective.branches.teachers),
        ):
            official = self.group(f"{branch}.")
            for name, tensor in tensors.items():
                tensor.data.copy_(official[official_name(name)])
        if config.centering == "softmax":
            objective.dino_targets.center.copy_(self.tensors["center.dino"].flatten())
            objective.ibot_targets.center.copy_(self.tensors["center.ibot"].flatten())
        return objective

    def _backbone(self, student: dict[str, Tensor]) -> Backbone:
        depth = 1 + max(int(key.split(".")[2]) for key in student if key.startswith("backbone.blocks."))
        width = student["backbone.cls_token"].shape[-1]
        hidden = student["backbone.blocks.0.mlp.fc1.bias"].shape[0]
        vit = VisionTransformer(
            img_size=self.tensors["global_crops"].shape[-1],
            patch_size=PATCH,
            embed_dim=width,
            depth=depth,
            num_heads=int(self.meta["heads"]),
            mlp_ratio=hidden / width,
            init_values=1.0,
            num_classes=0,
            global_pool="",
            dynamic_img_size=True,
        )
        vit.pretrained_cfg = {}
        return Backbone(vit, name="golden", pos_embed="dinov2")

    def _batch(self) -> Batch:
        n_images, n_local = int(self.meta["batch"]), int(self.meta["local_crops"])
        return Batch(
            global_crops=self.tensors["global_crops"].unflatten(0, (2, n_images)),
            local_crops=self.tensors["local_crops"].unflatten(0, (n_local, n_images)),
            masks=self.tensors["masks"].unflatten(0, (2, n_images)),
            keys=tuple(str(i) for i in range(n_images)),
            step=0,
        )

    def losses(self) -> dict[str, Tensor]:
        return self.objective(self.batch, teacher_temp=float(self.tensors["teacher_temp"]))


def head_config(student: dict[str, Tensor], prefix: str) -> HeadConfig:
    linears = [t for key, t in student.items() if key.startswith(f"{prefix}mlp.") and key.endswith("weight")]
    return HeadConfig(
        prototypes=student[f"{prefix}last_layer.weight_v"].shape[0],
        hidden=linears[0].shape[0],
        bottleneck=student[f"{prefix}last_layer.weight_v"].shape[1],
        layers=len(linears),
    )


def official_name(ours: str) -> str:
    return ours.replace("backbone.vit.", "backbone.")


def assert_golden(ours: Tensor, official: Tensor) -> None:
    """Equal to 1e-5 of the largest official value (fp32)."""
    error = (ours.detach() - official).abs().max() / official.abs().max()
    assert error <= 1e-5, f"relative error {error:.2e}"


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_golden_features(golden: Golden) -> None:
    backbone, batch = golden.objective.backbone, golden.batch
    student = backbone(batch.global_crops.flatten(0, 1), batch.masks.flatten(0, 1))
    assert_golden(student.cls, golden.tensors["student.global.x_norm_clstoken"])
    assert_golden(student.patches, golden.tensors["student.global.x_norm_patchtokens"])
    assert_golden(
        backbone(batch.local_crops.flatten(0, 1)).cls, golden.tensors["student.local.x_norm_clstoken"]
    )
    with golden.objective.branches.teacher():
        teacher = backbone(batch.global_crops.flatten(0, 1))
    assert_golden(teacher.cls, golden.tensors["teacher.x_norm_clstoken"])
    assert_golden(teacher.patches, golden.tensors["teacher.x_norm_patchtokens"])


def test_golden_losses(golden: Golden) -> None:
    losses, official = golden.losses(), golden.group("loss.")
    assert_golden(losses["dino_global"], official["dino_global_crops_loss"])
    assert_golden(losses["dino_local"], official["dino_local_crops_loss"])
    # The official code displays these two divided by its number of global crops.
    assert_golden(losses["ibot"], 2 * official["ibot_loss"])
    if golden.objective.config.koleo_weight > 0:
        assert_golden(losses["koleo"], 2 * official["koleo_loss"])


def test_golden_gradients(golden: Golden) -> None:
    golden.losses()["total"].backward()
    official, students = golden.group("grad."), golden.objective.branches.students
    assert {official_name(name) for name in students} == set(official)
    for name, tensor in students.items():
        assert tensor.grad is not None, name
        assert_golden(tensor.grad, official[official_name(name)])


def test_golden_centers(golden: Golden) -> None:
    golden.losses()
    golden.objective.settle(applied=True)
    ours = {
        key.split("_")[0]: t for key, t in golden.objective.named_buffers() if key.endswith("targets.center")
    }
    official = golden.group("center_after.")  # none for Sinkhorn-Knopp, which has no state
    assert ours.keys() == official.keys()
    for name, center in ours.items():
        assert_golden(center, official[name].flatten())
