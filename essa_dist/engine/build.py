"""The one construction order: build, load pretrained, adapt, heads, branches, precision, standardise, shard, restore."""

import logging
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from essa_dist.adapters import inject_adapter
from essa_dist.backbones import build_backbone
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.data.batch import check_channels
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.shards import PackedImages
from essa_dist.data.stream import TarStream, open_stream
from essa_dist.data.stream_loader import StreamLoader
from essa_dist.distributed.collectives import all_gather
from essa_dist.distributed.strategies import Clipping, Strategy, choose
from essa_dist.engine.config import RunConfig
from essa_dist.engine.first_gradients import expect_gradients
from essa_dist.engine.loss_scale import LossScale
from essa_dist.engine.optim import build_optimizer
from essa_dist.engine.schedules import in_steps
from essa_dist.errors import UsageError
from essa_dist.objectives import DINOv2Objective

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Trained:
    """How many numbers one branch trains; counted while every rank still has all of them."""

    trunk: int
    heads: int


@dataclass(frozen=True)
class Training:
    """What the loop needs, all on the device."""

    strategy: Strategy
    loss_scale: LossScale
    loader: CropLoader | StreamLoader
    images: PackedImages | TarStream
    total_steps: int
    steps_per_epoch: int
    trunk_sha256: str
    trunk_parameters: int
    trained: Trained

    @property
    def accelerator(self) -> Accelerator:
        return self.strategy.accelerator

    @property
    def objective(self) -> DINOv2Objective:
        return self.strategy.objective


def build(config: RunConfig, accelerator: Accelerator, *, restored: bool = False) -> Training:
    """Everything of a run at its step 0, or (``restored``) made to be filled from a checkpoint.

    Raises UsageError, DataError or WeightsError with the way out.
    """
    torch.manual_seed(config.seed)  # heads start equal on every process
    if not config.data.train:
        raise UsageError(
            "data.train is not set: name a packed data set, as data.train=PACKED (essa pack makes one)"
        )
    images = open_training_images(config.data)
    check_channels(config.backbone.in_chans)  # before seconds of loading
    backbone = build_backbone(config.backbone, seed=config.seed)
    trunk_sha256 = parameters_sha256(backbone)
    trunk_parameters = sum(p.numel() for p in backbone.parameters())
    adapter = inject_adapter(backbone, config.adapter, seed=config.seed)
    dtype = DTYPES[config.precision]
    objective = DINOv2Objective(backbone, config.objective, compute_dtype=dtype)
    cast_frozen(objective, dtype)
    objective.to(accelerator.device).train()
    optimizer = build_optimizer(objective.branches.students, config.optim, depth=len(backbone.vit.blocks))
    loader = build_loader(images, config, accelerator, patch_size=backbone.patch_size)
    if not restored:
        standardize_heads(objective, loader, config, accelerator.device)  # whole on every rank until here
    trunk, every = objective.branches.count("backbone."), objective.branches.count()
    strategy = choose(accelerator)
    micro_batch, rest = divmod(config.batch_size, accelerator.num_processes * config.accumulate)
    if rest:
        raise UsageError(
            f"batch_size={config.batch_size} is not a multiple of {accelerator.num_processes} processes x "
            f"accumulate={config.accumulate}: change batch_size or accumulate"
        )
    clipping = Clipping(config.optim.clip, config.optim.clip_over)
    strategy.prepare(objective, optimizer, clipping, micro_batch=micro_batch)
    expect_gradients(objective.branches, adapter)
    steps_per_epoch = max(1, len(images) // config.batch_size)
    return Training(
        strategy=strategy,
        loss_scale=LossScale(enabled=config.precision == "fp16"),
        loader=loader,
        images=images,
        total_steps=in_steps(config.duration, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        trunk_sha256=trunk_sha256,
        trunk_parameters=trunk_parameters,
        trained=Trained(trunk, every - trunk),
    )


def open_training_images(data: DataConfig) -> PackedImages | TarStream:
    """What ``data.train`` names. Raises UsageError or DataError."""
    if data.order == "plan":
        return data.open()
    return open_stream(data.train, data.stream, None if data.window == "header" else data.window)


def build_loader(
    images: PackedImages | TarStream, config: RunConfig, accelerator: Accelerator, *, patch_size: int
) -> CropLoader | StreamLoader:
    """The loader of this rank."""
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    common = {"seed": config.seed, "global_batch": config.batch_size, "patch_size": patch_size} | ranks
    if isinstance(images, TarStream):
        return StreamLoader(images, config.data, **common)
    return CropLoader(images, config.data, **common, device=accelerator.device)


def cast_frozen(objective: DINOv2Objective, dtype: torch.dtype) -> None:
    """Keep what is never trained in the precision it is computed in; it needs no fp32 master."""
    trained = {
        id(p) for group in (objective.branches.students, objective.branches.teachers) for p in group.values()
    }
    for parameter in objective.parameters():
        if id(parameter) not in trained:
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def standardize_heads(
    objective: DINOv2Objective, loader: CropLoader | StreamLoader, config: RunConfig, device: torch.device
) -> None:
    """Give each head that asks for it the statistics of frozen features; before step 0 of a new run only.

    Heads that ask for different numbers of images all get the largest.
    """
    heads = [head for head in (objective.dino_head, objective.ibot_head) if head is not None]
    n_images = max(head.standardize_on for head in heads)
    if not n_images:
        return
    backbone = objective.backbone
    features = []
    for batch in loader.batches(0, -(-n_images // config.batch_size)):
        ready = batch.to(device, mean=backbone.mean, std=backbone.std, dtype=DTYPES[config.precision])
        with objective.branches.teacher():  # before step 0 that is the frozen model
            features.append(all_gather(backbone(ready.global_crops.flatten(0, 1)).cls.float()))
    for head in heads:
        if head.standardize_on:
            head.standardize(torch.cat(features))
