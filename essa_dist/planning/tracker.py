"""What a training step keeps in memory and computes, seen while it runs on fake tensors.

A dispatch mode sees each operation that torch makes, of forward passes, autograd and optimizer alike, so what is
recorded is what the code does, whatever it is changed to. Every storage is an entry with the moments of its birth and
death; operations are entries with their arithmetic and the bytes they move.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from essa_dist.planning.sizes import IMAGES, PATCHES, Size, size_of

aten = torch.ops.aten
_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
Phase = Literal["forward", "backward", "update", "between"]
HEADS = "heads and logits"
TEMPORARY = "temporary"
CASTS = "half-precision copies"


@dataclass
class Block:
    """A storage."""

    size: Size
    """Bytes."""
    born: int
    phase: Phase
    """between: after the step, of what is looked at now and then."""
    turn: int
    """How many forward and backward phases had begun when it was born."""
    where: str
    """The part of the model that ran."""
    inside: int
    """Which pass of a transformer block with gradients it was born in, counted from 1; 0: none."""
    cast: bool
    """Whether it is a trained tensor in another precision."""
    is_output: bool = False
    """Whether that block handed it on."""
    term: str = ""
    """What it is, where that is known without looking at its life."""
    died: int | None = None
    left: int | None = None
    """``turn`` when it died."""


@dataclass
class Operation:
    flops: Size
    moved: Size
    """Bytes read and written, each tensor once."""
    phase: Phase
    where: str
    inside: int
    """As of a block."""
    grad: bool
    """Whether a backward pass is to come; of a pass through the trunk."""
    matrix: bool
    """Whether it is a product of matrices, which tensor cores make ..."""
    eight: bool
    """... in 8 bits."""


class Tracker(TorchDispatchMode):
    """Records while it is active, inside a FakeTensorMode.

    Answers what fake tensors can't: how many elements a boolean mask chooses (``patches``), and single numbers, which
    are all 1 or ``truth``. ``reorders``: convolutions in 16 bits copy what they read and write, as oneDNN's on a CPU do
    (measured: 3 times the output where input and output are alike; in fp32 none).
    """

    def __init__(self, *, truth: bool = True, reorders: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.truth, self.reorders = truth, reorders
        self.blocks: list[Block] = []
        self.operations: list[Operation] = []
        self.events: list[tuple[int, int]] = []
        """(+1 or -1, number of the block), in order."""
        self.phase: Phase = "forward"
        self.turn = 0
        self.where = HEADS
        self.inside = 0
        self.grad = False
        self.repeats = Size(1.0, 0, 0)
        """How often what runs now is to count; see :mod:`.slices`."""
        self.recording = False
        self._live: dict[int, int] = {}  # id of a storage to its block
        self._watches: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default:
            return self.truth if args[0].dtype is torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is aten.index.Tensor:
            args = (args[0], _chosen(args[1]))
        out = func(*args, **(kwargs or {}))
        if self.recording:
            self._record(func, args, kwargs or {}, out)
        return out

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        made = [t for t in tree_iter(out) if isinstance(t, Tensor)]
        fresh = [
            t for t in made if self._meet(t, cast=func is aten._to_copy.default and self._trained(args[0]))
        ]
        if not fresh and (func.is_view or not func._schema.is_mutable):
            return
        count = flop_registry.get(func._overloadpacket) or _CPU_ATTENTION.get(func._overloadpacket)
        flops = int(count(*args, **kwargs, out_val=out)) if count else sum(t.numel() for t in made)
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in (*given, *made))
        if self.reorders and func in _CONVOLUTIONS and made[0].element_size() == 2:
            self._pass_by(_leading(moved, (*given, *made)))
        self.operations.append(
            Operation(
                self._repeated(size_of(flops)),
                self._repeated(_leading(moved, (*given, *made))),
                self.phase,
                self.where,
                self.inside,
                self.grad,
                count is not None,
                func is aten._scaled_mm.default,
            )
        )

    def _repeated(self, size: Size) -> Size:
        n = self.repeats
        if n.is_constant:
            return size._replace(factor=n.factor * size.factor, more=n.factor * size.more)
        # What a slice does not take part of, as a whole matrix that it is put into, counts once.
        return (
            n._replace(factor=n.factor * size.factor, more=n.more * size.factor) if size.is_constant else size
        )

    def _trained(self, tensor: Any) -> bool:
        number = self._live.get(id(tensor.untyped_storage()))
        return number is not None and self.blocks[number].term in ("trained tensors", "branches")

    def _meet(self, tensor: Tensor, *, cast: bool = False, term: str = "") -> bool:
        """Whether its storage is new."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._live:
            return False
        number = len(self.blocks)
        size = size_of(storage.nbytes())
        place = (self.phase, self.turn, self.where, self.inside)
        self.blocks.append(Block(size, len(self.events), *place, cast=cast, term=term))
        self.events.append((1, number))
        self._live[key] = number
        self._watches[key] = weakref.ref(storage, lambda _: self._leave(key))
        return True

    def _pass_by(self, size: Size) -> None:
        """Memory that an operation takes and gives back."""
        number, place = len(self.blocks), (self.phase, self.turn, self.where, self.inside)
        born = len(self.events)
        self.blocks.append(Block(size, born, *place, cast=False, died=born + 1, left=self.turn))
        self.events += [(1, number), (-1, number)]

    def _leave(self, key: int) -> None:
        number = self._live.pop(key)
        del self._watches[key]
        self.blocks[number].died, self.blocks[number].left = len(self.events), self.turn
        self.events.append((-1, number))

    def know(self, tensors: Iterable[Tensor], term: str) -> None:
        """Enter storages that are there already, or say what known ones are."""
        for tensor in tensors:
            if not self._meet(tensor, term=term):
                self.blocks[self._live[id(tensor.untyped_storage())]].term = term

    def hand_on(self, tensor: Tensor) -> None:
        """A transformer block ends with ``tensor``."""
        if (number := self._live.get(id(tensor.untyped_storage()))) is not None:
            self.blocks[number].is_output = True

    def enter(self, phase: Phase) -> None:
        """A phase begins."""
        self.phase, self.turn = phase, self.turn + 1

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Inside, ``where`` runs. Asked now, for functions with a backward pass of their own run without gradients inside."""
        before = self.where, self.grad
        self.where, self.grad = where, torch.is_grad_enabled()
        try:
            yield
        finally:
            self.where, self.grad = before


def _chosen(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Boolean masks as the numbers of the elements they choose."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool:
            found += [index.new_empty(PATCHES, dtype=torch.long) for _ in range(index.ndim)]
        else:
            found.append(index)
    return found


def _leading(moved: int, tensors: tuple[Tensor, ...]) -> Size:
    """Bytes of an operation as one power: that of its largest tensor, which is nearly all of them."""
    largest = size_of(max((t.numel() * t.element_size() for t in tensors), default=0))
    whole = size_of(moved)
    if (whole.i, whole.j, bool(whole.more)) == (largest.i, largest.j, bool(largest.more)):
        return whole
    share = moved / max(1, _number(largest))
    return largest._replace(factor=largest.factor * share, more=largest.more * share)


def _number(size: Size) -> float:
    return float(size.factor * IMAGES**size.i * PATCHES**size.j + size.more * PATCHES)


def _forward(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape))


_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""What torch's table of operations lacks."""
