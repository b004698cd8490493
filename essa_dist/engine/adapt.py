"""Self-supervised adaptation: what it trains, on what, by which schedules. The loop is in ``train.py``.

The one construction order: build, load pretrained, adapt, heads, branches, precision, standardise, shard, restore.
"""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor

from essa_dist.adapters import inject_adapter
from essa_dist.backbones import build_backbone
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.data.batch import Batch, check_channels, normalise
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.data.stream import TarStream, open_stream
from essa_dist.data.stream_loader import StreamLoader
from essa_dist.distributed.collectives import all_gather
from essa_dist.engine.build import DTYPES, Training, Trunk, assemble
from essa_dist.engine.config import RunConfig
from essa_dist.engine.fast import make_ready
from essa_dist.engine.job import Job
from essa_dist.engine.optim import step_values
from essa_dist.engine.recording.canary import Canary
from essa_dist.engine.recording.probe import Embedder, Probe
from essa_dist.engine.schedules import outlasting
from essa_dist.engine.shared_trunk import share_trunk
from essa_dist.engine.train import run_job
from essa_dist.engine.watching.guard import CollapseWatch
from essa_dist.engine.watching.signals import stop_signals
from essa_dist.errors import UsageError
from essa_dist.objectives import DINOv2Objective, Embed, StepValues
from essa_dist.planning.forecast import Forecast

log = logging.getLogger(__name__)


def adapt(config: RunConfig) -> dict[str, Any]:
    """Adapt a backbone to unlabelled images and return a summary of the run (see ``words.summary``).

    Raises UsageError, DataError, WeightsError before the first step; DivergedError when a loss is not finite;
    Preempted after a signal, when the checkpoint is on disk; OutOfMemory, with a way out, on a GPU that is too small.
    """
    with stop_signals() as signals, Forecast(config):
        return run_job(Adaptation(config), signals)


class Adaptation(Job[RunConfig]):
    """Trains adapter and projection heads by DINOv2's objective, and watches for collapse."""

    scheduled: ClassVar[tuple[str, ...]] = (*Job.scheduled, "ema_momentum", "teacher_temp")

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.watch = CollapseWatch(config.guard, prototypes=config.objective.head.prototypes)

    def build(self, accelerator: Accelerator, *, restored: bool = False) -> Training:
        """See :class:`Job`; raises UsageError, DataError or WeightsError with the way out."""
        config = self.config
        torch.manual_seed(config.seed)  # heads start equal on every process
        if not config.data.train:
            raise UsageError(
                "data.train is not set: name a packed data set, as data.train=PACKED (essa pack makes one)"
            )
        images = open_training_images(config.data)
        check_channels(config.backbone.in_chans)  # before seconds of loading
        backbone = build_backbone(config.backbone, seed=config.seed)
        trunk = Trunk(parameters_sha256(backbone), sum(p.numel() for p in backbone.parameters()))
        dtype = DTYPES[config.precision]
        shared = share_trunk(config.shared_trunk, backbone, trunk.sha256, dtype, accelerator.device)
        adapter = inject_adapter(backbone, config.adapter, seed=config.seed)
        objective = DINOv2Objective(backbone, config.objective, compute_dtype=dtype)
        make_ready(objective, config.engine, dtype, accelerator.device)
        objective.to(accelerator.device).train()
        loader = build_loader(images, config, accelerator, patch_size=backbone.patch_size)
        if not restored:
            standardize_heads(objective, loader, config, accelerator.device)  # whole on every rank until here
        training = assemble(
            objective,
            adapter,
            trunk,
            loader,
            images,
            config,
            accelerator,
            samples=len(images),
            shared=shared,
        )
        if accelerator.is_main_process:
            for words in outlasting(config.schedule, training.total_steps, training.steps_per_epoch):
                log.warning(words)
        return training

    def values(self, step: int, training: Training) -> StepValues:
        """The schedules at ``step``, from 0."""
        return step_values(
            step,
            total=training.total_steps,
            steps_per_epoch=training.steps_per_epoch,
            optim=self.config.optim,
            schedule=self.config.schedule,
        )

    def open_look(self, training: Training) -> Canary | None:
        """The canary that the settings ask for, its images read. Raises UsageError or DataError."""
        settings, data = self.config.canary, self.config.data
        if settings.every is None:
            return None
        images = training.images
        if settings.data:
            window = None if data.window == "header" else data.window
            images = open_packed(settings.data, prefer=("val", "train"), window=window, cache=data.cache)
        if not isinstance(images, PackedImages):
            raise UsageError(
                "data.order=stream names no images for the canary: give it a packed set, canary.data=PACKED"
            )
        probe = Probe(images, settings, image_size=data.crops.global_size)
        return Canary(settings, probe, embedder(self.config, training))

    def check(self, step: int, batch: Batch, numbers: Mapping[str, float], training: Training) -> None:
        """Warn of collapse; one rank's warning is enough."""
        if not training.accelerator.is_main_process:
            return
        rows = 2 * batch.global_crops.shape[1] // self.config.accumulate
        self.watch.check(
            step,
            rankme=numbers["rankme"],
            max_rank=min(rows, training.objective.backbone.embed_dim),
            prototype_entropy=numbers["prototype_entropy"],
            teacher_entropy=numbers["teacher_entropy"],
        )


def open_training_images(data: DataConfig) -> PackedImages | TarStream:
    """What ``data.train`` names. Raises UsageError or DataError."""
    if data.order == "plan":
        return data.open().keep_decoded(data.decoded, data.decoded_gb)
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


def embedder(config: RunConfig, training: Training) -> Embedder:
    """The teacher's class tokens, through the module that the strategy wrapped."""
    backbone, device = training.objective.backbone, training.accelerator.device
    dtype = DTYPES[config.precision]

    def embed(pixels: Tensor) -> Tensor:
        ready = normalise(pixels.to(device), backbone.mean, backbone.std, dtype)
        cls: Tensor = training.strategy.model(Embed(ready)).cls
        return cls

    return embed
