"""The optimizer, its parameter groups, and one step's values written into them."""

import re
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from essa_dist.engine.schedules import ScheduleConfig, cosine, in_steps, linear, warmup_cosine
from essa_dist.objectives import StepValues
from essa_dist.settings import Config


class OptimConfig(Config):
    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate of the adapter; not scaled by the batch size."""
    head_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the heads (null: as ``lr``)."""
    min_lr: float = Field(1e-6, ge=0)
    """Where the cosine of both learning rates ends."""
    weight_decay: float = Field(1e-5, ge=0)
    """Weight decay at the start; biases, norms and LayerScale never decay."""
    weight_decay_end: float | None = Field(None, ge=0)
    """Weight decay at the end of its cosine (null: constant)."""
    head_weight_decay: float | None = Field(None, ge=0)
    """Constant weight decay of the heads (null: as the adapter's)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    momentum: float = Field(0.9, gt=0, lt=1)
    """SGD's momentum."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Each block's learning rate is this factor of the one's above it."""
    patch_embed_lr: float = Field(1.0, ge=0)
    """Factor on the learning rate of the patch embedding."""
    clip: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    clip_over: Literal["model", "module"] = "model"
    """Clip one norm over everything trained, or one for the trunk and each head as DINOv2."""


def layer_of(name: str, depth: int) -> int:
    """0 for the embeddings, 1..depth for the blocks, depth + 1 for the final norm and the heads."""
    block = re.search(r"vit\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if re.search(r"patch_embed|pos_embed|cls_token|reg_token|mask_token", name) else depth + 1


def build_optimizer(
    students: dict[str, nn.Parameter], config: OptimConfig, *, depth: int
) -> torch.optim.Optimizer:
    """AdamW or SGD over the student's trained tensors.

    One group for each combination of part, decay and lr factor, and of what may be held back together: ZeRO makes a
    flat tensor of each group, with one step count.
    """
    groups: dict[tuple[str, str, bool, float], dict[str, Any]] = {}
    for name, parameter in students.items():
        part = "trunk" if name.startswith("backbone.") else "head"
        decays = parameter.ndim >= 2 and not name.endswith("bias")
        scale = config.layer_decay ** (depth + 1 - layer_of(name, depth)) if part == "trunk" else 1.0
        scale *= config.patch_embed_lr if "patch_embed" in name else 1.0
        new = {"params": [], "part": part, "decays": decays, "lr_scale": scale}
        groups.setdefault((part, holds(name), decays, scale), new)["params"].append(parameter)
    if config.kind == "sgd":
        # Not fused: that kernel does not take the sharded tensors of FSDP2.
        return torch.optim.SGD(list(groups.values()), lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=config.betas, fused=True)


def step_values(
    step: int, *, total: int, steps_per_epoch: int, optim: OptimConfig, schedule: ScheduleConfig
) -> StepValues:
    """Every schedule at ``step`` (from 0) of a run of ``total`` steps."""

    def steps(duration: int | str) -> int:
        return in_steps(duration, steps_per_epoch)

    def lr(peak: float) -> float:
        return warmup_cosine(step, steps(schedule.warmup), total, peak, optim.min_lr)

    end = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    weight_decay = cosine(step, total, optim.weight_decay, end)
    temp_steps = steps(schedule.teacher_temp_warmup)
    return StepValues(
        lr=lr(optim.lr),
        head_lr=lr(optim.lr if optim.head_lr is None else optim.head_lr),
        weight_decay=weight_decay,
        head_weight_decay=weight_decay if optim.head_weight_decay is None else optim.head_weight_decay,
        ema_momentum=cosine(step, total, schedule.ema_momentum, schedule.ema_momentum_end),
        teacher_temp=linear(step, temp_steps, schedule.teacher_temp_start, schedule.teacher_temp),
        adapter_frozen=step < steps(schedule.head_warmup),
        last_layer_frozen=step < steps(schedule.freeze_last_layer),
    )


def set_values(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Write one step's learning rates and weight decays into the optimizer's groups."""
    for group in optimizer.param_groups:
        trunk = group["part"] == "trunk"
        group["lr"] = group["lr_scale"] * (values.lr if trunk else values.head_lr)
        decay = values.weight_decay if trunk else values.head_weight_decay
        group["weight_decay"] = decay if group["decays"] else 0.0


def holds(name: str) -> str:
    """Which phase of a run holds the tensor of this name back: the adapter's, the last layer's, or none (empty)."""
    if name.startswith("backbone."):
        return "adapter"
    return "last_layer" if "last_layer." in name else ""


def held_back(students: Iterable[str], values: StepValues) -> set[str]:
    """Names of the tensors that this step must not move, nor their moments."""
    phases = {"adapter": values.adapter_frozen, "last_layer": values.last_layer_frozen, "": False}
    return {name for name in students if phases[holds(name)]}
