"""Regional compilation: the blocks' forward, compiled once for all of them, for each size of crops.

Blocks of one trunk have the same code, so torch.compile traces the first block, whose input may need no gradient, and the
second, and finds the others done. Shapes are static: global and local crops, student and teacher have graphs of their own.
Hooks on a block stay outside, those inside it (the branches') are traced.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

Compile = Literal["off", "auto", "on"]


def compile_blocks(vit: Any, when: Compile, *, unless: Callable[[], bool]) -> None:
    """Compile the blocks of ``vit``: ``on`` everywhere, ``auto`` on CUDA. While ``unless()``, they run as they are.

    Only their class is changed, so recomputation and all else that overrides ``forward`` goes around it.
    """
    kinds: dict[type[nn.Module], type[nn.Module]] = {}
    for block in vit.blocks if when != "off" else ():
        kind = type(block)
        if kind not in kinds:
            kinds[kind] = _compiled(kind, when, unless)
        block.__class__ = kinds[kind]
        block.names_of_hooks = [module._forward_hooks_always_called for module in block.modules()]


def _compiled(kind: type[nn.Module], when: Compile, unless: Callable[[], bool]) -> type[nn.Module]:
    run = torch.compile(kind.forward, dynamic=False)

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            if isinstance(x, FakeTensor) or (when == "auto" and not x.is_cuda) or unless():
                return kind.forward(self, x, *args, **kwargs)
            # Hooks that are to run after an exception too are known by numbers, which would tell one block from the
            # next. Not once: wrappers put the branches' hooks there anew (FSDP2, ZeRO-3), and it takes a microsecond.
            for names in self.names_of_hooks:
                names.clear()
            return run(self, x, *args, **kwargs)
        except BaseException:
            _undress(self)
            raise

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _undress(block: nn.Module) -> None:
    """What those hooks would have done after an exception: take casts of parameters away."""
    for module in block.modules():
        for name in module._parameters:
            vars(module).pop(name, None)
