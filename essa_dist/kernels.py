"""Kernels that make a step faster where they work. Each is tried once in a process, on a small case whose answer is known."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

TRIED: dict[str, str] = {}
"""What was tried in this process: that it is used, or why it isn't. A measurement without it could be one of the other way."""


@cache
def works(what: str, trial: Callable[[torch.device], bool], device: torch.device) -> bool:
    """Whether ``trial(device)`` is true. Where it is not, or raises, that is said, once: the caller's other way, which is
    slower and gives the same, is then taken.

    A kernel depends on driver, compiler and GPU, of which no release can know all: it must not cost anybody a run.
    """
    try:
        with _apart(device):
            right = trial(device)
        if right:
            TRIED[what] = "used"
            return True
        why = "its result on a small case is wrong"
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
    TRIED[what] = f"left out: {why}"
    log.warning("%s is left out, a slower way gives the same: %s", what, why)
    return False


@contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """Whatever pass asks for the trial (the teacher's has no gradients, a recomputed block's counts what it keeps, an
    evaluation's casts): a trial is as if alone, and its random numbers are not the run's."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        yield


def fused(
    function: Callable[..., Any], at: Tensor, *, trial: Callable[[torch.device], bool] | None = None
) -> Callable[..., Any]:
    """``function``, a few operations element by element, as one kernel where ``at`` is on CUDA; itself elsewhere.

    ``trial``: for functions that ask more of a GPU than most (None: whether anything can be compiled).
    """
    if at.device.type != "cuda" or torch.compiler.is_compiling():
        return function
    what = f"torch.compile of {function.__name__}"
    return compiled(function) if works(what, trial or _compiles, at.device) else function


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _compiles(device: torch.device) -> bool:
    x = torch.arange(8.0, device=device)
    return bool(torch.equal(torch.compile(_twice_and_one)(x), _twice_and_one(x)))


def _twice_and_one(x: Tensor) -> Tensor:
    return 2 * x + 1
