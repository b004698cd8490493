"""Words and tensors between ranks, on the CPU and apart from the collectives of training; identities on one process.

Nothing is pickled: words are JSON, tensors are bytes of a size that the receiver knows.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from essa_dist import errors
from essa_dist.distributed.collectives import rank, world_size

T = TypeVar("T")
PATIENCE = timedelta(hours=1)
"""For one message: a rank may wait while rank 0 writes a checkpoint to a slow disk. A rank that dies is noticed at once."""


class Channel:
    """A gloo group of its own, so that one thread can use it while another trains. All ranks make it together.

    Whatever is called here is called on every rank in the same order, by one thread at a time.
    """

    def __init__(self) -> None:
        self.rank, self.world = rank(), world_size()
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None

    def send(self, x: Tensor, to: int) -> None:
        """``x``: contiguous, on the CPU."""
        dist.send(_bytes(x), to, group=self._group)

    def receive(self, x: Tensor, source: int) -> None:
        """Fill ``x``, as large as what ``source`` sends."""
        dist.recv(_bytes(x), source, group=self._group)

    def broadcast(self, x: Tensor) -> None:
        """Fill ``x`` on every rank with that of rank 0."""
        if self.world > 1:
            dist.broadcast(_bytes(x), 0, group=self._group)

    def gather(self, words: Any) -> list[Any]:
        """On rank 0 the words of every rank, in their order; nothing on the others."""
        if self.rank > 0:
            text = _text(words)
            self.send(torch.tensor(len(text)), 0)
            self.send(text, 0)
            return []
        return [words, *(self._hear(source) for source in range(1, self.world))]

    def _hear(self, source: int) -> Any:
        size = torch.tensor(0)
        self.receive(size, source)
        text = torch.empty(int(size), dtype=torch.uint8)
        self.receive(text, source)
        return json.loads(text.numpy().tobytes())

    def tell(self, words: Any) -> Any:
        """The words of rank 0, on every rank; what the others give is not looked at."""
        if self.world == 1:
            return words
        text = _text(words if self.rank == 0 else None)
        size = torch.tensor(len(text))
        self.broadcast(size)
        if self.rank > 0:
            text = torch.empty(int(size), dtype=torch.uint8)
        self.broadcast(text)
        return json.loads(text.numpy().tobytes())

    def together(self, work: Callable[[], T]) -> T:
        """What ``work`` gives on rank 0, where alone it is called, on every rank; or its error, on every rank.

        The result must be of JSON's types.
        """
        result, error = None, None
        if self.rank == 0:
            try:
                result = work()
            except Exception as raised:
                error = raised
        told = self.tell({"result": result} if error is None else {"error": _describe(error)})
        if error is not None:
            raise error
        if "error" in told:
            raise _error(told["error"])
        kept: T = told["result"]
        return kept


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


def _text(words: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)


def _describe(error: Exception) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": type(error).__name__, "text": str(error)}
    if isinstance(error, OSError) and error.errno is not None:
        described["system"] = [error.errno, error.strerror, error.filename and str(error.filename)]
    return described


def _error(described: dict[str, Any]) -> Exception:
    """The like of an error of rank 0: of the same class where that is ours or the operating system's."""
    if "system" in described:
        return OSError(*described["system"])
    kind = getattr(errors, described["kind"], None)
    if isinstance(kind, type) and issubclass(kind, errors.EssaError):
        return kind(described["text"])
    return RuntimeError(f"rank 0: {described['kind']}: {described['text']}")
