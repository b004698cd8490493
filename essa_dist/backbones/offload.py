"""Activations kept in the host's memory from a block's forward to its backward pass; weights stay where they are.

Copies out run beside the computation, on a stream of their own; a tensor comes back when it is first asked for. On a CPU,
whose memory is the host's, nothing moves.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 2**16
"""Bytes under which a copy costs more than it frees."""


def offload_blocks(vit: Any) -> None:
    """Keep on the host what the blocks of ``vit`` keep for their backward passes."""
    for block in vit.blocks:
        opened: list[Any] = []
        block.register_forward_pre_hook(_Opening(opened))
        block.register_forward_hook(_Closing(opened), always_call=True)


class _Opening:
    def __init__(self, opened: list[Any]) -> None:
        self.opened = opened

    def __call__(self, block: nn.Module, args: Any) -> None:
        parameters = block.parameters() if args[0].is_cuda else ()  # elsewhere everything stays
        weights = {p.untyped_storage().data_ptr() for p in parameters}
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: _away(tensor, weights), _back)
        hooks.__enter__()
        self.opened.append(hooks)


class _Closing:
    def __init__(self, opened: list[Any]) -> None:
        self.opened = opened

    def __call__(self, block: nn.Module, args: Any, output: Any) -> None:
        self.opened.pop().__exit__(None, None, None)


def _away(tensor: Tensor, weights: set[int]) -> Any:
    small = tensor.numel() * tensor.element_size() < SMALLEST
    if not tensor.is_cuda or small or tensor.untyped_storage().data_ptr() in weights:
        return tensor
    stream = _beside(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        dense = _without_gaps(tensor)
        host = torch.empty_like(dense, device="cpu", pin_memory=True)
        host.copy_(dense, non_blocking=True)
    tensor.record_stream(stream)  # its memory is given out again behind the copy only
    return tensor.device, host, tensor.stride()


def _back(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    device, host, strides = packed
    torch.cuda.current_stream(device).wait_stream(_beside(device))
    return _laid_out(host.to(device, non_blocking=True), strides)


def _without_gaps(tensor: Tensor) -> Tensor:
    """Itself, or a copy of a view with gaps, as q, k and v are: between different layouts torch copies by way of memory that
    isn't pinned, and waits."""
    plain = torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    return tensor if plain else tensor.contiguous()


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """With ``strides``: compiled code counts on those that it saw."""
    if tensor.stride() == strides or 0 in strides:
        return tensor
    empty = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return empty.copy_(tensor)


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
