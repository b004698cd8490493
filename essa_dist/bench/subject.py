"""A run's training step on noise: the same objects as ``essa adapt`` makes, without data and without a run's folder."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from essa_dist.adapters import inject_adapter
from essa_dist.backbones import build_backbone
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.bench.clock import Clock
from essa_dist.bench.machine import chosen_device
from essa_dist.data.batch import Batch, check_channels
from essa_dist.data.masks import draw_masks
from essa_dist.data.views import N_GLOBAL
from essa_dist.distributed.environment import make_accelerator
from essa_dist.engine.build import DTYPES, Trunk, assemble
from essa_dist.engine.config import RunConfig
from essa_dist.engine.fast import make_ready
from essa_dist.engine.shared_trunk import share_trunk
from essa_dist.engine.step import train_step
from essa_dist.objectives import DINOv2Objective, StepValues

VALUES = StepValues(
    lr=1e-6, head_lr=1e-6, weight_decay=0.04, head_weight_decay=0.04, adapter_frozen=False, ema_momentum=0.99,
    teacher_temp=0.05,
)  # fmt: skip
"""A step in the middle of a run, when nothing is held back any more; so small that noise doesn't make it diverge."""
MASKS = 8
"""Different sets of masks, taken in turns: the number of masked patches varies as in training."""


def prepare_process(config: RunConfig) -> torch.device:
    """Threads and arithmetic as ``essa adapt`` sets them; the device of this rank. Raises UsageError where it isn't there."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    device = chosen_device(config.device)
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


class Subject:
    """The step of ``config`` under the launcher that this process was started by. Weights are random.

    Raises UsageError for what can't be built, as ``essa adapt`` does.
    """

    def __init__(self, config: RunConfig) -> None:
        random = config.backbone.model_copy(update={"weights": "random"})
        self.config = config = config.model_copy(update={"backbone": random})
        check_channels(config.backbone.in_chans)
        device = prepare_process(config)
        torch.manual_seed(config.seed)
        accelerator = make_accelerator(cpu=device.type == "cpu")
        self.device, self.dtype = accelerator.device, DTYPES[config.precision]
        backbone = build_backbone(config.backbone, seed=config.seed)
        sha256 = parameters_sha256(backbone) if config.shared_trunk else ""
        trunk = Trunk(sha256, sum(p.numel() for p in backbone.parameters()))
        shared = share_trunk(config.shared_trunk, backbone, sha256, self.dtype, self.device)
        adapter = inject_adapter(backbone, config.adapter, seed=config.seed)
        objective = DINOv2Objective(backbone, config.objective, compute_dtype=self.dtype)
        make_ready(objective, config.engine, self.dtype, self.device)
        objective.to(self.device).train()
        nothing = cast(Any, None)  # no loader and no images
        self.training = assemble(
            objective, adapter, trunk, nothing, nothing, config, accelerator,
            samples=config.batch_size, shared=shared,
        )  # fmt: skip
        self.objective, self.strategy = objective, self.training.strategy
        self.images = config.batch_size // accelerator.num_processes
        self.clock = Clock(self.device)
        _mark(self.strategy, objective, self.clock)
        torch.manual_seed(accelerator.process_index)

    def batches(self, images: int | None = None) -> Iterator[Batch]:
        """Without end: normalised noise crops of one rank, always the same, and masks as ``data.masks`` draws them."""
        count = images or self.images
        crops, backbone = self.config.data.crops, self.objective.backbone
        grid = crops.global_size // backbone.patch_size
        masks = [
            draw_masks(
                self.config.data.masks,
                seed=self.strategy.accelerator.process_index,
                step=step,
                crops=N_GLOBAL * count,
                select=range(N_GLOBAL * count),
                grid=(grid, grid),
            )
            for step in range(MASKS)
        ]
        ready = [torch.from_numpy(one).unflatten(0, (N_GLOBAL, count)).to(self.device) for one in masks]

        def noise(views: int, size: int) -> torch.Tensor:
            shape = (views, count, self.config.backbone.in_chans, size, size)
            return torch.randn(shape, dtype=self.dtype, device=self.device)

        pixels = noise(N_GLOBAL, crops.global_size), noise(crops.n_local, crops.local_size)
        batch = Batch(
            global_crops=pixels[0],
            local_crops=pixels[1],
            masks=ready[0],
            keys=tuple(map(str, range(count))),
            step=0,
        )
        while True:
            yield from (replace(batch, masks=one) for one in ready)

    def run(self, batch: Batch) -> None:
        """One update; its times are a lap of :attr:`clock`."""
        with self.clock.lap():
            train_step(
                self.strategy,
                batch,
                VALUES,
                accumulate=self.config.accumulate,
                loss_scale=self.training.loss_scale,
                diagnose=False,
            )

    def sizes(self) -> dict[str, int]:
        """Bytes that the trained tensors of one branch take alone (with the adapter's buffers), and a whole checkpoint."""
        from safetensors.torch import save

        from essa_dist.distributed.messages import Channel
        from essa_dist.engine.saving.saver import Saver

        trained = [s for name, s in self.strategy.shapes().items() if name.startswith("student/backbone.")]
        buffers = {name: tensor.cpu() for name, tensor in self.objective.backbone.named_buffers()}
        alone = sum(4 * shape.numel() for shape in trained) + len(save(buffers))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "checkpoints").mkdir()
            saver = Saver(Path(folder), self.strategy, Channel(), keep=1)
            saver.save(1, {"step": 1})
            saver.wait()
            return {"adapter_bytes": alone, "checkpoint_bytes": saver.done[-1].bytes}


def _mark(strategy: Any, objective: DINOv2Objective, clock: Clock) -> None:
    """Have the calls of a step mark where its phases end. What a marked call is preceded by is of the phase before."""
    of_strategy = {
        "backward": ("student forward", "backward"),
        "update": ("update", "update"),
        "update_teacher": ("update", "EMA"),
    }
    for name, (before, phase) in of_strategy.items():
        setattr(strategy, name, _marked(getattr(strategy, name), clock, before, phase))
    teacher = objective.branches.teacher

    @contextmanager
    def marked_teacher() -> Iterator[None]:
        clock.mark("student forward")  # of several micro-batches, where they need a pass before them
        with cast(AbstractContextManager[None], teacher()):
            yield
        clock.mark("teacher forward")

    setattr(objective.branches, "teacher", marked_teacher)  # noqa: B010  (mypy forbids to assign a method)


def _marked(function: Callable[..., Any], clock: Clock, before: str, phase: str) -> Callable[..., Any]:
    def marked(*args: Any, **kwargs: Any) -> Any:
        clock.mark(before)
        found = function(*args, **kwargs)
        clock.mark(phase)
        return found

    return marked
