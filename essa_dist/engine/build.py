"""What every run has in common when it is built: from a module that holds everything to one that is spread over ranks."""

import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from essa_dist.adapters import Adapter
from essa_dist.data.shards import PackedImages
from essa_dist.data.stream import TarStream
from essa_dist.distributed.strategies import Clipping, Strategy, choose
from essa_dist.engine.config import JobConfig
from essa_dist.engine.first_gradients import expect_gradients
from essa_dist.engine.loss_scale import LossScale
from essa_dist.engine.optim import build_optimizer
from essa_dist.engine.schedules import in_steps
from essa_dist.engine.shared_trunk import SharedTrunk
from essa_dist.errors import UsageError
from essa_dist.objectives import Objective

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Loader(Protocol):
    """Makes one rank's batches."""

    def batches(self, start_step: int, stop_step: int) -> Generator[Any, None, None]:
        """The batches of steps ``start_step`` up to, not with, ``stop_step``."""
        ...


@dataclass(frozen=True)
class Trunk:
    """The model as it was before anything was put into it."""

    sha256: str
    parameters: int


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
    loader: Loader
    images: PackedImages | TarStream
    total_steps: int
    steps_per_epoch: int
    trunk: Trunk
    trained: Trained

    @property
    def accelerator(self) -> Accelerator:
        return self.strategy.accelerator

    @property
    def objective(self) -> Objective:
        return self.strategy.objective


def assemble(
    objective: Objective,
    adapter: Adapter,
    trunk: Trunk,
    loader: Loader,
    images: PackedImages | TarStream,
    config: JobConfig,
    accelerator: Accelerator,
    *,
    samples: int,
    shared: SharedTrunk | None = None,
) -> Training:
    """Spread ``objective``, which is on the device and whole on every rank; an epoch has ``samples``.

    ``shared`` takes the place of frozen tensors in the end. Raises UsageError for a batch size that doesn't divide by ranks
    and accumulation steps, and for a strategy that doesn't keep frozen tensors whole where they are to be shared.
    """
    depth = len(objective.backbone.vit.blocks)
    optimizer = build_optimizer(objective.branches.students, config.optim, depth=depth)
    of_trunk, every = objective.branches.count("backbone."), objective.branches.count()
    strategy = choose(accelerator, shard_frozen=config.shard_frozen)
    if config.shared_trunk and strategy.name.startswith("zero3"):
        raise UsageError(
            f"shared_trunk does not go with {strategy.name}, which spreads frozen weights over ranks: leave it empty, or use "
            "launch/ddp.yaml, zero2.yaml or fsdp2.yaml"
        )
    micro_batch, rest = divmod(config.batch_size, accelerator.num_processes * config.accumulate)
    if rest:
        raise UsageError(
            f"batch_size={config.batch_size} is not a multiple of {accelerator.num_processes} processes x "
            f"accumulate={config.accumulate}: change batch_size or accumulate"
        )
    clipping = Clipping(config.optim.clip, config.optim.clip_over)
    strategy.prepare(objective, optimizer, clipping, micro_batch=micro_batch)
    expect_gradients(objective.branches, adapter)
    if (
        shared is not None
    ):  # only now: DDP and DeepSpeed have sent rank 0's weights to the others, into these tensors
        freed = shared.put_into(objective)
        log.info("shared_trunk: %.1f MB of frozen weights are those of %s", freed / 1e6, shared.path)
    steps_per_epoch = max(1, samples // config.batch_size)
    if not (total_steps := in_steps(config.duration, steps_per_epoch)):
        raise UsageError(f"duration={config.duration} trains nothing: give at least one step")
    return Training(
        strategy=strategy,
        loss_scale=LossScale(enabled=config.precision == "fp16"),
        loader=loader,
        images=images,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        trunk=trunk,
        trained=Trained(of_trunk, every - of_trunk),
    )
