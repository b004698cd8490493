"""DeepSpeed ZeRO, stages 1 to 3: optimizer state, gradients and (3) tensors are spread over the ranks.

DeepSpeed runs in fp32 here: trained tensors are fp32 masters that are cast where they are used, frozen ones have the
precision they are computed in, so a second copy in half precision would only cost memory. What this module touches
beyond DeepSpeed's documented API are the flat partitions its optimizers keep, in :mod:`.zero_pieces`.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from essa_dist.distributed.collectives import all_reduce_sum, rank
from essa_dist.distributed.strategies.clipping import clip
from essa_dist.distributed.strategies.interface import Part, Strategy, whole
from essa_dist.distributed.strategies.moments import counts_steps, moment_names
from essa_dist.distributed.strategies.zero_pieces import Piece, gradient, pieces, shard_of

BUCKET = 50_000_000
"""Numbers that are reduced together, unless the DeepSpeed config says otherwise; 200 MB."""


class ZeRO(Strategy):
    """``zero1``, ``zero2`` and ``zero3``, with or without offloading."""

    engine: Any  # a DeepSpeedEngine

    def wrap(self, optimizer: torch.optim.Optimizer, *, micro_batch: int) -> None:
        objective, clipping = self.objective, self.clipping
        self.groups = group_of(optimizer, objective.branches.students)
        config = self.accelerator.deepspeed_plugin.deepspeed_config
        # DeepSpeed's default makes a bucket of 500 million numbers, 2 GB, even to send a LoRA of one million.
        trained = sum(p.numel() for p in objective.branches.students.values())
        config["zero_optimization"].setdefault("reduce_bucket_size", min(trained, BUCKET))
        config |= {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": 1,  # the engine's loop marks the last micro-batch itself
            "gradient_clipping": clipping.norm if clipping.over == "model" else 0.0,
            "steps_per_print": None,
        }
        quieten()
        self.engine, _ = self.accelerator.prepare(objective, optimizer)
        self.model = self.engine
        self.zero = self.engine.optimizer
        self.optimizer = self.zero.optimizer
        self.moments = moment_names(self.optimizer)
        self.stage: int = self.engine.zero_optimization_stage()
        objective.branches.attach()  # after DeepSpeed's hooks, which gather what a module needs
        self.pieces: dict[str, Piece] = pieces(self.zero, self.stage, objective.branches.students)

    @property
    def sharded(self) -> bool:
        """From stage 3 on."""
        return self.stage == 3

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor, *, scale: float) -> None:
        if self.zero.loss_scale != scale:
            self.zero.override_loss_scale(scale)
        # A loss that isn't finite on one rank makes every rank's gradients so: DeepSpeed has no other way to forget
        # the gradients it has spread than a step it finds it can't take.
        poison = 1 + 0 * all_reduce_sum(loss.detach().float())
        self.engine.backward(poison * loss, scale_wrt_gas=False)

    def update(self, *, scale: float, held: set[str]) -> tuple[Tensor, bool]:
        device = self.accelerator.device
        norm = None
        if self.clipping.over == "module":
            norm = self._clip_by_module(scale)
        for group in self._held_groups(held):
            group["lr"] = group["weight_decay"] = 0.0
        self.engine.step()
        for flat in self._held_partitions(held):
            if counts_steps(
                self.optimizer
            ):  # SGD keeps but a momentum, which is zero where no gradient ever was
                self.optimizer.state[flat]["step"].zero_()
        applied = self.engine.was_step_applied()
        if norm is None or not applied:
            norm = torch.as_tensor(float(self.engine.get_global_grad_norm()), device=device)
        return norm, applied

    def _clip_by_module(self, scale: float) -> Tensor:
        """DeepSpeed knows one norm over everything; this scales the gradients that it is going to use."""
        mine = {
            name: gradient(self.objective.branches.students[name], self.stage).flatten()
            for name in self.pieces
        }
        # Every rank must know of every part, also of those it holds nothing of.
        for name in self.objective.branches.students:
            mine.setdefault(name, torch.zeros(1, device=self.accelerator.device))
        ordered = {name: mine[name] for name in self.objective.branches.students}
        return clip(ordered, self.clipping, scale=scale, sharded=True, unscale=False)

    def _held_groups(self, held: set[str]) -> list[dict[str, Any]]:
        return [self.optimizer.param_groups[i] for i in sorted({self.groups[name] for name in held})]

    def _held_partitions(self, held: set[str]) -> list[Tensor]:
        groups = {self.groups[name] for name in held}
        found = self._partitions()
        return [flat for group, flat in found if group in groups and flat in self.optimizer.state]

    def _partitions(self) -> list[tuple[int, Tensor]]:
        """This rank's flat fp32 partitions, each with the number of its parameter group."""
        if self.stage < 3:
            return list(enumerate(self.zero.single_partition_of_fp32_groups))
        flats = self.zero.fp32_partitioned_groups_flat
        return [(self.zero.sub_group_to_group_id[i], flat) for i, flat in enumerate(flats)]

    def discard(self) -> None:
        self.engine.step()
        assert not self.engine.was_step_applied(), "DeepSpeed stepped on gradients that are not finite"

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        branches = self.objective.branches
        if self.stage < 3:
            branches.update_teacher(momentum)
            return
        # Partitions of equal shapes are alike, so each rank moves its own and gathers nothing.
        teachers: dict[str, Any] = dict(branches.teachers)
        for name, teacher in teachers.items():
            student: Any = branches.students[name]
            teacher.ds_tensor.data.lerp_(student.ds_tensor.data, 1 - momentum)
            if teacher.numel():  # DeepSpeed keeps small tensors whole as well
                teacher.data.lerp_(self._whole(student), 1 - momentum)

    @staticmethod
    def _whole(parameter: Any) -> Tensor:
        assert parameter.numel() == parameter.ds_numel, "a teacher is gathered, but not its student"
        data: Tensor = parameter.data
        return data

    def parts(self) -> Iterator[Part]:
        branches = self.objective.branches
        for name, piece in self.pieces.items():
            shape = self.whole_shape(branches.students[name])
            yield Part(f"student/{name}", shape, piece.start, piece.of(piece.flat))
            for kind in self.moments if self._steps(piece.flat) else ():
                moment = self.optimizer.state[piece.flat][kind]
                yield Part(f"optimizer/{name}/{kind}", shape, piece.start, piece.of(moment))
        yield from self._teacher_parts()
        if rank() == 0 and counts_steps(self.optimizer):
            steps = {group: self._steps(flat) for group, flat in self._partitions()}
            for name in branches.students:
                if steps[self.groups[name]]:
                    step = torch.tensor(steps[self.groups[name]])
                    yield whole(f"optimizer/{name}/step", step)
        yield from self.buffer_parts()

    def _steps(self, flat: Tensor) -> float:
        """How often this partition was stepped; where that is not counted, whether it was."""
        state = self.optimizer.state.get(flat, {})
        if not counts_steps(self.optimizer):
            return float(state.get(self.moments[0]) is not None)
        return float(state.get("step", 0.0))

    def _teacher_parts(self) -> Iterator[Part]:
        for name, teacher in self.objective.branches.teachers.items():
            if self.stage == 3:
                start, values = shard_of(teacher)
                yield Part(f"teacher/{name}", self.whole_shape(teacher), start, values)
            elif rank() == 0:
                yield whole(f"teacher/{name}", teacher)

    def whole_shape(self, parameter: Any) -> torch.Size:
        return torch.Size(parameter.ds_shape) if self.stage == 3 else parameter.shape

    def fill_parameter(self, branch: str, name: str, whole: Tensor) -> None:
        branches = self.objective.branches
        parameter: Any = (branches.students if branch == "student" else branches.teachers)[name]
        if self.stage == 3:
            start, values = shard_of(parameter)
            values.copy_(whole.flatten()[start : start + values.numel()])
        if parameter.numel():
            parameter.data.copy_(whole)
        if branch == "student" and name in self.pieces:
            self.pieces[name].take(self.pieces[name].flat, whole)

    def fill_moment(self, name: str, kind: str, whole: Tensor) -> None:
        for group, flat in self._partitions():
            if group != self.groups[name]:
                continue
            state = self.optimizer.state[flat]
            for moment in self.moments:
                state.setdefault(moment, torch.zeros_like(flat))
            if kind == "step":
                state["step"] = whole.clone().float().to(flat.device if self._fused else "cpu")
        if kind in self.moments and name in self.pieces:
            piece = self.pieces[name]
            piece.take(self.optimizer.state[piece.flat][kind], whole)

    @property
    def _fused(self) -> bool:
        return bool(self.optimizer.param_groups[0].get("fused"))

    def filled(self) -> None:
        if self.stage < 3 and any(flat in self.optimizer.state for _, flat in self._partitions()):
            self.zero._lazy_init_hp_params_optimizer_state()


def quieten() -> None:
    """Leave out what DeepSpeed says of routine: skipped fp16 steps, which are counted here, and newer names in torch."""
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def group_of(optimizer: torch.optim.Optimizer, students: dict[str, Any]) -> dict[str, int]:
    """The number of the parameter group of each student tensor."""
    by_id = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return {name: by_id[id(p)] for name, p in students.items()}
