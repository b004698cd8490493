"""Parameter groups: what decays, at which rate each layer learns, what a step must not move."""

import pytest
import torch
from torch import nn

from essa_dist.engine.optim import OptimConfig, build_optimizer, held_back, set_values
from essa_dist.objectives import StepValues

NAMES = {
    "backbone.vit.patch_embed.proj.weight": (4, 3, 2, 2),
    "backbone.vit.cls_token": (1, 1, 4),
    "backbone.vit.blocks.0.attn.proj.weight": (4, 4),
    "backbone.vit.blocks.1.attn.proj.bias": (4,),
    "backbone.vit.blocks.1.norm1.weight": (4,),
    "backbone.vit.norm.weight": (4,),
    "dino_head.mlp.0.weight": (5, 4),
    "dino_head.mlp.0.bias": (5,),
    "dino_head.last_layer.weight_v": (6, 5),
}
DEPTH = 2


def values(**changes: object) -> StepValues:
    base = {
        "lr": 1.0,
        "head_lr": 2.0,
        "weight_decay": 0.1,
        "head_weight_decay": 0.2,
        "ema_momentum": 0.9,
        "teacher_temp": 0.04,
    }
    return StepValues(**(base | {"adapter_frozen": False, "last_layer_frozen": False} | changes))  # type: ignore[arg-type]


@pytest.fixture
def students() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in NAMES.items()}


def settings(students: dict[str, nn.Parameter], config: OptimConfig) -> dict[str, tuple[float, float]]:
    optimizer = build_optimizer(students, config, depth=DEPTH)
    set_values(optimizer, values())
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(by_id) == len(students)
    return {name: by_id[id(p)] for name, p in students.items()}


def test_matrices_decay_and_vectors_do_not(students: dict[str, nn.Parameter]) -> None:
    found = settings(students, OptimConfig())
    assert found["backbone.vit.blocks.0.attn.proj.weight"] == (1.0, 0.1)
    assert found["dino_head.mlp.0.weight"] == (2.0, 0.2)
    for name in (
        "backbone.vit.blocks.1.attn.proj.bias",
        "backbone.vit.blocks.1.norm1.weight",
        "dino_head.mlp.0.bias",
    ):
        assert found[name][1] == 0.0


def test_layer_decay_counts_from_the_top(students: dict[str, nn.Parameter]) -> None:
    found = settings(students, OptimConfig(layer_decay=0.5, patch_embed_lr=0.2))
    assert found["backbone.vit.norm.weight"][0] == 1.0
    assert found["backbone.vit.blocks.1.norm1.weight"][0] == 0.5
    assert found["backbone.vit.blocks.0.attn.proj.weight"][0] == 0.25
    assert found["backbone.vit.cls_token"][0] == 0.125
    assert found["backbone.vit.patch_embed.proj.weight"][0] == pytest.approx(0.025)
    assert found["dino_head.mlp.0.weight"][0] == 2.0  # heads have no layers to decay over


@pytest.mark.parametrize(
    ("frozen", "prefix"), [("adapter_frozen", "backbone."), ("last_layer_frozen", "dino_head.last_layer")]
)
def test_frozen_parts_do_not_move_not_even_by_weight_decay(
    students: dict[str, nn.Parameter], frozen: str, prefix: str
) -> None:
    optimizer = build_optimizer(students, OptimConfig(), depth=DEPTH)
    for p in students.values():
        p.grad = torch.ones_like(p)
    step = values(**{frozen: True})
    set_values(optimizer, step)
    for name in held_back(students, step):
        students[name].grad = None
    optimizer.step()
    for name, p in students.items():
        assert torch.equal(p.detach(), torch.ones_like(p)) == name.startswith(prefix), name
