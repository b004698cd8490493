"""Building a module whose random weights are not drawn, for they are about to be read from a file."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS: set[Callable[..., Any]] = {
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.erfinv_,  # by which timm makes a normal distribution of a uniform one
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
}


class Undrawn(TorchFunctionMode):
    """Within it these functions leave a tensor as it is: whatever was in memory. All others do what they always do.

    Of the 3.8 s of a core that it takes to have a ViT-L from a file, 1.6 s went into numbers that nobody saw.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
