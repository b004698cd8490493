"""Student and teacher: two settings of the trained tensors over one trunk.

Every trained tensor ``weight`` gets a sibling ``weight_teacher`` in the same module, and the modules that own such
tensors choose between the two as they are entered. Frozen tensors exist once and serve both branches. So one
module holds everything, one wrapper (DDP, ZeRO, FSDP2) sees it all, and the EMA touches trained tensors only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from essa_dist.distributed.collectives import local

SUFFIX = "_teacher"


class Branches:
    """Adds the teacher's tensors to ``root`` and switches between the branches.

    ``compute_dtype``: trained tensors are kept as they are (fp32 masters) and cast to it for the computation.
    Build it when everything trainable is in place and before any wrapper. Trained tensors must belong to modules
    that are entered by a call (``module(x)``), for the choice is made by forward hooks. Without ``teacher`` there is
    the student only, as supervised adaptation wants it.
    """

    def __init__(
        self, root: nn.Module, *, compute_dtype: torch.dtype = torch.float32, teacher: bool = True
    ) -> None:
        self.root, self.has_teacher = root, teacher
        self.active = "student"
        self.compute_dtype = compute_dtype
        self.students: dict[str, nn.Parameter] = {}
        self.teachers: dict[str, nn.Parameter] = {}
        self.held: set[str] = set()
        """Names of student tensors whose gradient is zero for now."""
        self.gradients: dict[str, Tensor] | None = None
        """While a dict: the largest absolute gradient this process saw of each student tensor, before any averaging."""
        self.looks = 0
        """How many updates more ``gradients`` are looked at."""
        self.silent: set[str] = set()
        """Student tensors whose gradient is zero in the first step, for they stand behind a zero."""
        self._owners: list[tuple[str, nn.Module, list[str]]] = []
        self._hooks: list[RemovableHandle] = []
        for prefix, module in list(root.named_modules()):
            names = [name for name, p in module._parameters.items() if p is not None and p.requires_grad]
            for name in names if teacher else ():
                student = module._parameters[name]
                assert isinstance(student, nn.Parameter)
                copied = nn.Parameter(student.detach().clone(), requires_grad=False)
                module.register_parameter(name + SUFFIX, copied)
            if names:
                self._owners.append((f"{prefix}." if prefix else "", module, names))
        self.attach()

    def attach(self) -> None:
        """Take the tensors as they are in the modules now, and choose after all hooks that are there by now.

        Again once a wrapper has put others in their place (FSDP2) or gathers them in hooks of its own (ZeRO-3).
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for prefix, module, names in self._owners:
            for name in names:
                student = module._parameters[name]
                assert student is not None
                self.students[prefix + name] = student
                if self.has_teacher:
                    teacher = module._parameters[name + SUFFIX]
                    assert teacher is not None
                    self.teachers[prefix + name] = teacher
            self._choose_on_entry(prefix, module, names)

    def _choose_on_entry(self, prefix: str, module: nn.Module, names: list[str]) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            suffix = SUFFIX if self.active == "teacher" else ""
            for name in names:
                stored = module._parameters[name + suffix]
                assert stored is not None
                value = stored.to(self.compute_dtype)
                # The name is read where there is something to look up only: a compiled block would be compiled for each name.
                held = self.held and prefix + name in self.held
                if not suffix and (self.gradients is not None or held):
                    value = self._hook_gradient(prefix + name, value)
                # An attribute found before the parameter of its name, which stays where wrappers look for it. It is
                # a cast of the parameter, through which the gradient flows back.
                module.__dict__[name] = value

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            for name in names:
                module.__dict__.pop(name, None)

        self._hooks.append(module.register_forward_pre_hook(enter))
        self._hooks.append(
            module.register_forward_hook(leave, always_call=True)
        )  # also when the forward raises

    def _hook_gradient(self, name: str, value: Tensor) -> Tensor:
        """``value`` whose gradient is noted, and zeroed if ``name`` is held; before any rank sees it."""
        if not torch.is_grad_enabled():
            return value

        def on_gradient(gradient: Tensor) -> Tensor | None:
            if self.gradients is not None:
                largest = gradient.detach().abs().amax().float()
                self.gradients[name] = torch.maximum(self.gradients.get(name, largest), largest)
            return torch.zeros_like(gradient) if name in self.held else None

        value = value.view_as(value)  # where the cast did nothing, not the parameter itself
        value.register_hook(on_gradient)
        return value

    def count(self, prefix: str = "") -> int:
        """How many numbers one branch trains, of the tensors whose name starts with ``prefix``."""
        return sum(p.numel() for name, p in self.students.items() if name.startswith(prefix))

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """Inside, the root computes with the teacher's tensors, without gradients and without stochastic depth."""
        training = self.root.training
        self.active = "teacher"
        self.root.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.root.train(training)
            self.active = "student"

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """``teacher <- momentum * teacher + (1 - momentum) * student``, a few kernels in all.

        Of sharded tensors each process moves its own shards, without a word to the others.
        """
        if not self.teachers:  # torch's foreach refuses an empty list
            return
        teachers = [local(teacher) for teacher in self.teachers.values()]
        students = [local(student) for student in self.students.values()]
        torch._foreach_lerp_(teachers, students, 1 - momentum)  # one pass: 0.7 of multiplying and adding

    @torch.no_grad()
    def reset_teacher(self) -> None:
        """Make the teacher equal to the student again, after weights were loaded or heads were initialised."""
        if self.teachers:
            torch._foreach_copy_(list(self.teachers.values()), list(self.students.values()))
