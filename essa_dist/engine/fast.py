"""The fast path: what makes a step cheaper and leaves its result as it is. ``engine.fast=false`` is the oracle of its tests."""

import logging
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from essa_dist.adapters.lora import quicken_lora
from essa_dist.backbones import packed
from essa_dist.backbones.attention import fast_attention
from essa_dist.backbones.cpu_linear import quicken_linears
from essa_dist.backbones.lean import Keep, lean_layers
from essa_dist.backbones.offload import offload_blocks
from essa_dist.backbones.quantised import Kind, QuantisedLinear, quantise_trunk
from essa_dist.backbones.recompute import recompute
from essa_dist.backbones.regional import Compile, compile_blocks
from essa_dist.backbones.vit import Backbone
from essa_dist.backbones.weights import say_once
from essa_dist.engine.host_memory import hold_freed_memory
from essa_dist.objectives import DINOv2Objective, Objective
from essa_dist.settings import Config


class EngineConfig(Config):
    """How a step is computed; what is computed is said elsewhere."""

    fast: bool = True
    """Take the fast path; false: the slow, obvious one, which gives the same up to rounding."""
    pack: Literal["auto"] | bool = "auto"
    """Global and local crops in one pass of the student's trunk, where its family and adapter allow it; auto: on CUDA."""
    hold_memory: bool = True
    """CPU: use freed memory again instead of giving it back to the kernel, which takes time to hand it out anew in each step."""
    keep: Keep = "exact"
    """What frozen layers keep for the backward pass: exact, or 8bit: GELU's derivative and the inputs of norms in 8 bits each,
    7 instead of 10 token widths a block with apla; gradients change by about as much as bf16 changes them, 1 to 2 %."""
    recompute: Literal["none", "mlp", "blocks"] | Annotated[int, Field(ge=2)] = "none"
    """What is computed again in the backward pass to keep less: mlp (up to its last layer, about a seventh more time), blocks
    (all, about a third; as backbone.checkpoint_activations), or every so many-th block."""
    offload: bool = False
    """CUDA: keep the blocks' activations in the host's memory until the backward pass."""
    compile: Compile = "off"
    """torch.compile of the blocks, once for each size of crops (minutes at the first steps): auto: on CUDA; on: everywhere."""
    trunk: Literal["precision"] | Kind = "precision"
    """How frozen linear layers of the trunk's blocks are kept: in the run's precision; fp8: multiplied in 8 bits where the GPU
    can (compute capability 8.9 and up); int8, nf4: for memory, unpacked for each product. What is exported, and evaluated
    later, is the trunk as it was read, with what was trained. Off with fast=false."""

    @property
    def trunk_kept(self) -> Literal["precision"] | Kind:
        """What ``trunk`` comes to."""
        return self.trunk if self.fast else "precision"


def make_ready(
    objective: Objective, config: EngineConfig, dtype: torch.dtype, device: torch.device | None = None
) -> None:
    """Put everything frozen into the form it is computed in; and the fast path, as far as ``config`` wants it.

    To be called once, when adapter and heads are in place, before any wrapper; ``objective`` may hold fake tensors.
    ``device``: where it is going to be; what can go there layer by layer does (None: it stays where it is).
    """
    if config.trunk_kept != "precision":
        quantise_trunk(objective.backbone, config.trunk_kept, dtype=dtype, device=device)
    cast_frozen(objective, dtype)
    if config.fast:
        if device is not None and device.type == "cpu":
            if config.hold_memory:
                hold_freed_memory()
            if dtype is torch.bfloat16:
                quicken_linears(objective)
        fast_attention(objective.backbone.vit)
        quicken_lora(objective.backbone.vit)
        pack_crops(objective.backbone, config.pack)
        keep_less(objective.backbone.vit, config)
        branches = objective.branches
        compile_blocks(
            objective.backbone.vit,
            config.compile,
            unless=lambda: branches.gradients is not None or bool(branches.held),
        )
        if isinstance(objective, DINOv2Objective):
            objective.sliced = True


def pack_crops(backbone: Backbone, when: Literal["auto"] | bool) -> None:
    """Let groups of crops go through ``backbone`` together, as ``when`` says; or say, once, why they can't."""
    if when is False:
        return
    if reason := packed.why_not(backbone.vit):
        say_once(logging.INFO, f"engine.pack: one pass for each size of crops, since {reason}")
        return
    packed.pack(backbone.vit)
    backbone.packs = when


def keep_less(vit: nn.Module, config: EngineConfig) -> None:
    """Activations, as ``config`` wants them kept."""
    lean_layers(vit, config.keep)
    recompute(vit, config.recompute)
    if config.offload:
        offload_blocks(vit)


def cast_frozen(objective: Objective, dtype: torch.dtype) -> None:
    """Keep what is never trained in the precision it is computed in; it needs no fp32 master."""
    groups = (objective.branches.students, objective.branches.teachers)
    kept = {id(p) for group in groups for p in group.values()}
    kept |= {id(p) for m in objective.modules() if isinstance(m, QuantisedLinear) for p in m.packed}
    for parameter in objective.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)
