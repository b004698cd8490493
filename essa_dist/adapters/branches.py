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

SUFFIX = "_teacher"


class Branches:
    """Adds the teacher's tensors to ``root`` and switches between the branches.

    ``compute_dtype``: trained tensors are kept as they are (fp32 masters) and cast to it for the computation.
    Build it when everything trainable is in place and before any wrapper. Trained tensors must belong to modules
    that are entered by a call (``module(x)``), for the choice is made by forward hooks.
    """

    def __init__(self, root: nn.Module, *, compute_dtype: torch.dtype = torch.float32) -> None:
        self.root = root
        self.active = "student"
        self.compute_dtype = compute_dtype
        self.students: dict[str, nn.Parameter] = {}
        self.teachers: dict[str, nn.Parameter] = {}
        for prefix, module in list(root.named_modules()):
            names = [name for name, p in module._parameters.items() if p is not None and p.requires_grad]
            for name in names:
                student = module._parameters[name]
                assert isinstance(student, nn.Parameter)
                teacher = nn.Parameter(student.detach().clone(), requires_grad=False)
                module.register_parameter(name + SUFFIX, teacher)
                full_name = f"{prefix}.{name}".lstrip(".")
                self.students[full_name], self.teachers[full_name] = student, teacher
            if names:
                self._choose_on_entry(module, names)

    def _choose_on_entry(self, module: nn.Module, names: list[str]) -> None:
        kept: dict[str, Any] = {}

        def enter(module: nn.Module, args: Any) -> None:
            suffix = SUFFIX if self.active == "teacher" else ""
            for name in names:
                kept[name] = module._parameters[name]
                chosen = module._parameters[name + suffix]
                assert chosen is not None
                # Not a Parameter while inside: a cast of one, through which the gradient flows back to it.
                module._parameters[name] = chosen.to(self.compute_dtype)  # type: ignore[assignment]

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            module._parameters.update(kept)
            kept.clear()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)  # also when the forward raises

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
        """``teacher <- momentum * teacher + (1 - momentum) * student`` on whole tensors, a few kernels in all."""
        if not self.students:  # torch's foreach refuses an empty list
            return
        teachers: list[Tensor] = list(self.teachers.values())
        students: list[Tensor] = list(self.students.values())
        torch._foreach_mul_(teachers, momentum)
        torch._foreach_add_(teachers, students, alpha=1 - momentum)

    @torch.no_grad()
    def reset_teacher(self) -> None:
        """Make the teacher equal to the student again, after weights were loaded or heads were initialised."""
        if self.students:
            torch._foreach_copy_(list(self.teachers.values()), list(self.students.values()))
