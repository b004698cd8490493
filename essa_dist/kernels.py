"""Kernels that make a step faster where they work. Each is tried once in a process, on a small case whose answer is known."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@cache
def works(what: str, trial: Callable[[torch.device], bool], device: torch.device) -> bool:
    """Whether ``trial(device)`` is true. Where it is not, or raises, that is said, once: the caller's other way, which is
    slower and gives the same, is then taken.

    A kernel depends on driver, compiler and GPU, of which no release can know all: it must not cost anybody a run.
    """
    try:
        if trial(device):
            return True
        why = "its result on a small case is wrong"
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
    log.warning("%s is left out, a slower way gives the same: %s", what, why)
    return False


def fused(function: Callable[..., Any], at: Tensor) -> Callable[..., Any]:
    """``function``, a few operations element by element, as one kernel where ``at`` is on CUDA; itself elsewhere."""
    if at.device.type != "cuda" or torch.compiler.is_compiling():
        return function
    return _compiled(function) if works("torch.compile", _compiles, at.device) else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _compiles(device: torch.device) -> bool:
    x = torch.arange(8.0, device=device)
    return bool(torch.equal(torch.compile(_twice_and_one)(x), _twice_and_one(x)))


def _twice_and_one(x: Tensor) -> Tensor:
    return 2 * x + 1
