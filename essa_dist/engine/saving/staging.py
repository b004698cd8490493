"""What this rank gives to a checkpoint, copied to the CPU before the next update, and the order it is written in."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from essa_dist.distributed.strategies.interface import Part
from essa_dist.engine.saving.tensorfile import DTYPES, in_order, place_in_file
from essa_dist.export.saved import FILES

BLOCK = 64 << 20
"""Bytes of memory that are allocated at a time, and the most that goes into one message between ranks."""
_ALIGN = 16
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """A run of numbers of one whole tensor, flattened, on the CPU."""

    name: str
    shape: Sequence[int]
    """Of the whole tensor."""
    start: int
    values: Tensor

    def describe(self) -> list[Any]:
        """Name, dtype, shape, start and length, for :func:`plan`."""
        return [self.name, _NAMES[self.values.dtype], list(self.shape), self.start, len(self.values)]


class Staging:
    """Memory for one copy of this rank's parts; used again by every save.

    Fresh memory would cost some 20 times the copy (page faults, or pinning it for a GPU), hence :meth:`warm`.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._blocks: list[Tensor] = []

    def warm(self, n_bytes: int) -> None:
        """Allocate and touch memory for ``n_bytes``."""
        while len(self._blocks) * BLOCK < n_bytes:
            self._grow()

    def _grow(self) -> None:
        block = torch.empty(BLOCK, dtype=torch.uint8, pin_memory=self._pinned)
        self._blocks.append(block if self._pinned else block.zero_())

    def reserve(self, parts: Iterable[Part]) -> list[tuple[Piece, Tensor]]:
        """Room for each of ``parts``, in the order of the files, and what is to be copied into it; until the next call."""
        reserved: list[tuple[Piece, Tensor]] = []
        number, used = 0, 0
        for part in parts:
            values, start = part.values, part.start
            while len(values):
                if used == BLOCK:
                    number, used = number + 1, 0
                if number == len(self._blocks):
                    self._grow()
                n = min(len(values), (BLOCK - used) // values.element_size())
                room = self._blocks[number][used : used + n * values.element_size()].view(values.dtype)
                reserved.append((Piece(part.name, part.shape, start, room), values[:n]))
                used += -(-n * values.element_size() // _ALIGN) * _ALIGN
                values, start = values[n:], start + n
        return sorted(reserved, key=lambda one: _order(one[0]))


class Copying:
    """Copies of live tensors, made by another thread from the state that they have when this is called into being."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def run(self, reserved: Iterable[tuple[Piece, Tensor]]) -> None:
        """Copy, and wait until it is done. On a GPU beside what it computes, on a stream of its own."""
        if self._ready is None:
            for piece, source in reserved:
                piece.values.copy_(source)
            return
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            stream.wait_event(self._ready)
            for piece, source in reserved:
                piece.values.copy_(source, non_blocking=True)
        stream.synchronize()


def _order(piece: Piece) -> tuple[int, tuple[int, str], int]:
    file, _, name = piece.name.partition("/")
    return FILES.index(file), place_in_file(name, piece.values.dtype), piece.start


class Place(NamedTuple):
    """Where a piece is to be had."""

    rank: int
    number: int
    """Which of that rank's pieces it is."""
    numel: int
    dtype: str


@dataclass(frozen=True)
class Plan:
    """How the pieces of all ranks become files."""

    tensors: dict[str, dict[str, tuple[str, list[int]]]]
    """Of each file the names of its tensors, with dtype and shape."""
    order: dict[str, list[Place]]
    """Of each file the pieces, as they lie in it. A rank's own pieces come in the order in which it staged them."""


def plan(
    described: Sequence[Sequence[list[Any]]], shapes: Mapping[str, Sequence[int]], trained: Collection[str]
) -> Plan:
    """A plan for the pieces that each rank described.

    ``shapes``: of the whole tensors that must be there (``Strategy.shapes``); optimizer state may be.
    ``trained``: names of the trained tensors, the only ones that may be in ``student``, ``teacher`` and ``optimizer``.
    Raises RuntimeError, naming the tensor, unless the pieces cover every whole tensor exactly once.
    """
    found: dict[str, list[tuple[int, Place]]] = defaultdict(list)
    tensors: dict[str, dict[str, tuple[str, list[int]]]] = {file: {} for file in FILES}
    for rank, pieces in enumerate(described):
        for number, (name, dtype, shape, start, numel) in enumerate(pieces):
            found[name].append((start, Place(rank, number, numel, dtype)))
            file, _, inside = name.partition("/")
            if tensors[file].setdefault(inside, (dtype, shape)) != (dtype, shape):
                raise RuntimeError(f"{name} is {dtype}{shape} on rank {rank}, but not on the ranks before it")
    _check_names(tensors, shapes, set(trained))
    order: dict[str, list[Place]] = {}
    for file, inside in tensors.items():
        order[file] = []
        for name in in_order(inside):
            pieces_of_it = sorted(found[f"{file}/{name}"])
            _check_cover(f"{file}/{name}", inside[name][1], pieces_of_it)
            order[file] += [place for _, place in pieces_of_it]
    return Plan(tensors, order)


def _check_cover(name: str, shape: list[int], pieces: Sequence[tuple[int, Place]]) -> None:
    covered = 0
    for start, place in pieces:
        if start != covered:
            raise RuntimeError(
                f"{name} {shape}: rank {place.rank} has it from {start} on, not from {covered}"
            )
        covered += place.numel
    if covered != math.prod(shape):
        raise RuntimeError(f"{name} {shape}: all ranks together have {covered} numbers of it")


def _check_names(
    tensors: dict[str, dict[str, tuple[str, list[int]]]],
    shapes: Mapping[str, Sequence[int]],
    trained: set[str],
) -> None:
    for name, shape in shapes.items():
        file, _, inside = name.partition("/")
        if inside not in tensors[file]:
            raise RuntimeError(f"no rank has {name} {list(shape)} for the checkpoint")
        if tensors[file][inside][1] != list(shape):
            raise RuntimeError(
                f"{name} is {tensors[file][inside][1]} on the ranks, {list(shape)} in the model"
            )
    stepped = {name.rpartition("/")[0] for name in tensors["optimizer"]}
    for names in (tensors["student"].keys(), tensors["teacher"].keys(), stepped):
        if frozen := names - trained:
            raise RuntimeError(f"{min(frozen)} is not trained and does not belong into a checkpoint")
