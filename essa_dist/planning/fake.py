"""One training step of a run's real objects on fake tensors: no weights are read, no memory is taken."""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from essa_dist.backbones.quantised import FP8Linear
from essa_dist.distributed.strategies import Clipping
from essa_dist.distributed.strategies.replicated import Replicated
from essa_dist.engine.build import DTYPES
from essa_dist.engine.config import JobConfig
from essa_dist.engine.fast import make_ready
from essa_dist.engine.loss_scale import LossScale
from essa_dist.engine.optim import build_optimizer
from essa_dist.engine.step import train_step
from essa_dist.losses.slices import going
from essa_dist.objectives import Objective, StepValues
from essa_dist.planning.sets import ParameterSets, parameter_sets, units_of
from essa_dist.planning.sizes import IMAGES
from essa_dist.planning.slices import CountedSlices
from essa_dist.planning.subject import Subject, subject_of
from essa_dist.planning.tracker import Tracker

VALUES = StepValues(lr=1e-3, head_lr=1e-3, weight_decay=0.0, head_weight_decay=0.0, adapter_frozen=False)
"""A step in the middle of a run: nothing is held back any more."""


@dataclass(frozen=True)
class Seen:
    """A step, as it was seen."""

    tracker: Tracker
    sets: ParameterSets
    passes: dict[str, tuple[int, int]]
    """Units that FSDP2 gathers (``block``, ``head``, ...): passes without and with gradient in a micro-batch."""
    patch_size: int
    micro_batches: int
    """Of those that an update has, how many were run: two stand for all."""
    rss: float
    """Bytes of this process when the libraries were there and the step was not: what Python and they take."""
    surveys: bool
    """Whether several micro-batches need a pass before them; see ``objectives.accumulation``."""
    offloads: bool
    """Whether what blocks keep goes to the host."""


class Alone(Replicated):
    """One process, without Accelerate; tells the tracker what the step is doing."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(SimpleNamespace(device=torch.device("cpu")), "single")
        self.tracker = tracker

    def wrap(self, optimizer: torch.optim.Optimizer, *, micro_batch: int) -> None:
        self.optimizer, self.model = optimizer, self.objective

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        self.tracker.enter("forward")
        return nullcontext()

    def backward(self, loss: Tensor, *, scale: float) -> None:
        self.tracker.enter("backward")
        super().backward(loss, scale=scale)

    def update(self, *, scale: float, held: set[str]) -> tuple[Tensor, bool]:
        self.tracker.enter("update")
        return super().update(scale=scale, held=held)


def see_step(config: JobConfig, *, gpu: bool, fp8: bool = False, classes: int | None = None) -> Seen:
    """Build and make one step of ``config`` on fake tensors. ``gpu``: with the attention that is chosen there.
    ``fp8``: and it multiplies in 8 bits. ``classes``: see :func:`~.subject.subject_of`.

    Seconds, whatever the batch. Raises UsageError for a model or adapter that can't be built.
    """
    subject = subject_of(config, classes)
    dtype, tracker = DTYPES[config.precision], Tracker(truth=False, reorders=not gpu)
    rng = torch.get_rng_state()
    try:
        backbone = subject.trunk()
        if not gpu:
            subject.bring()
        rss = float(psutil.Process().memory_info().rss)
        # Tasks have tensors of their own, some numbers each.
        with FakeTensorMode(allow_non_fake_inputs=True), tracker:
            backbone._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))  # type: ignore[no-untyped-call]
            objective = subject.objective(backbone, dtype)
            make_ready(objective, config.engine, dtype)
            for layer in objective.modules():
                if isinstance(layer, FP8Linear):
                    layer.scaled = gpu and fp8
            objective.train()
            return _step(subject, objective, tracker, gpu=gpu, rss=rss)
    finally:
        torch.set_rng_state(rng)


def _step(subject: Subject[Any], objective: Objective, tracker: Tracker, *, gpu: bool, rss: float) -> Seen:
    config: JobConfig = subject.run
    backbone, branches, dtype = objective.backbone, objective.branches, DTYPES[config.precision]
    optimizer = build_optimizer(branches.students, config.optim, depth=len(backbone.vit.blocks))
    strategy = Alone(tracker)
    strategy.prepare(objective, optimizer, Clipping(config.optim.clip, config.optim.clip_over), micro_batch=1)
    _remember(optimizer, branches.students.values())
    micro_batches = min(2, config.accumulate)
    sets = parameter_sets(objective, optimizer)
    batch = subject.batch(micro_batches * IMAGES, backbone, dtype)
    tracker.know(sets.frozen, "trunk")
    tracker.know(sets.trained, "trained tensors")
    tracker.know(sets.teacher, "branches")
    tracker.know(sets.moments, "optimizer")
    tracker.know((getattr(batch, name) for name in batch.AXES), "images")
    for student in branches.students.values():
        if student.requires_grad:
            student.register_post_accumulate_grad_hook(lambda p: tracker.know([p.grad], "gradients"))
    tracker.truth = tracker.recording = True
    with going(CountedSlices(tracker)), _watched(objective, tracker, gpu=gpu) as passes:
        train_step(
            strategy,
            batch,
            VALUES,
            accumulate=micro_batches,
            loss_scale=LossScale(enabled=config.precision == "fp16"),
            diagnose=False,
        )
        counted = {name: (a // micro_batches, b // micro_batches) for name, (a, b) in passes.items()}
        tracker.enter("between")
        subject.look(objective, backbone, dtype)
    tracker.recording = False
    offloads = gpu and config.engine.fast and config.engine.offload
    surveys = subject.surveys(objective)
    return Seen(tracker, sets, counted, backbone.patch_size, micro_batches, rss, surveys, offloads)


def _remember(optimizer: torch.optim.Optimizer, students: Any) -> None:
    """The optimizer's state, as it is from the second step on."""
    for student in students:
        student.grad = torch.zeros_like(student)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def _watched(objective: Objective, tracker: Tracker, *, gpu: bool) -> Iterator[dict[str, tuple[int, int]]]:
    """Inside, the tracker is told which crops and blocks run; the dict is filled with the passes of each unit."""
    passes: dict[str, tuple[int, int]] = {}
    hooks: list[Any] = [*_watch_crops(objective.backbone, tracker), *_watch_blocks(objective, tracker)]
    counted = [("trunk", objective.backbone), *units_of(objective)]
    hooks += [module.register_forward_pre_hook(_counting(passes, name)) for name, module in counted]
    for block in objective.backbone.vit.blocks if gpu else ():
        if hasattr(block.attn, "fused_attn"):
            # Behind the hook of ours that looks at the device, which is a CPU here.
            hooks.append(block.attn.register_forward_pre_hook(_fused))
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def _watch_crops(backbone: nn.Module, tracker: Tracker) -> Iterator[Any]:
    stack: list[AbstractContextManager[None]] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        images, pixels = args[0].shape[0], args[0].shape[-1]
        stack.append(tracker.at(f"{-(-images // IMAGES)} x {pixels} px"))
        stack[-1].__enter__()

    def leave(*_: Any) -> None:
        stack.pop().__exit__(None, None, None)

    yield backbone.register_forward_pre_hook(enter)
    yield backbone.register_forward_hook(leave, always_call=True)


def _watch_blocks(objective: Objective, tracker: Tracker) -> Iterator[Any]:
    numbers = itertools.count(1)

    def enter(*_: Any) -> None:
        tracker.inside = next(numbers) if torch.is_grad_enabled() and tracker.phase == "forward" else 0

    def leave(module: nn.Module, args: Any, output: Tensor) -> None:
        if tracker.inside:
            tracker.hand_on(output)
        tracker.inside = 0

    for block in objective.backbone.vit.blocks:
        yield block.register_forward_pre_hook(enter)
        yield block.register_forward_hook(leave)


def _counting(passes: dict[str, tuple[int, int]], name: str) -> Any:
    def count(*_: Any) -> None:
        without, with_ = passes.get(name, (0, 0))
        grad = torch.is_grad_enabled()
        passes[name] = (without + (not grad), with_ + grad)

    return count


def _fused(attention: Any, args: tuple[Any, ...]) -> None:
    attention.fused_attn = True
