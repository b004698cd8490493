"""Frozen linear layers whose weight is kept in 8 or 4 bits.

A layer stays the object it was, with its name, bias, hooks and whatever adapters put into it; only its class is another
one, and packed parameters are in its weight's place. Parameters, as buffers are written into checkpoints.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from essa_dist.backbones.quantised import codes
from essa_dist.backbones.quantised.products import ScaledProduct, UnpackedProduct, multiplies_fp8

Kind = Literal["fp8", "int8", "nf4"]


class QuantisedLinear(nn.Linear):
    """Made of a frozen ``nn.Linear`` by :func:`quantise_`."""

    names: ClassVar[tuple[str, ...]]
    """Of the packed parameters, in the order in which ``unpack`` takes them."""
    multiple: ClassVar[int] = 1
    """in_features must be a multiple of it ..."""
    multiple_out: ClassVar[int] = 1
    """... and out_features of this."""
    pack: ClassVar[Callable[..., tuple[Tensor, ...]]]
    """The packed tensors of an fp32 weight [D, C]."""
    unpack: ClassVar[Callable[..., Tensor]]
    """The weight [D, C] again, of the packed tensors and a dtype."""
    weight_dtype: torch.dtype = torch.float32

    @property
    def packed(self) -> list[nn.Parameter]:
        return [self.get_parameter(name) for name in self.names]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Unpacked, for adapters that compute with it themselves, as DoRA does; kept nowhere."""
        return self.unpack(*self.packed, self.weight_dtype)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = UnpackedProduct.apply(x, self.bias, self.unpack, *self.packed)  # type: ignore[no-untyped-call]
        return y


class Int8Linear(QuantisedLinear):
    names = ("codes", "step")
    pack = staticmethod(codes.pack_int8)
    unpack = staticmethod(codes.unpack_int8)


class NF4Linear(QuantisedLinear):
    names = ("bits", "codes", "step", "mean", "pairs")
    multiple = codes.BLOCK
    pack = staticmethod(codes.pack_nf4)
    unpack = staticmethod(codes.unpack_nf4)


class FP8Linear(QuantisedLinear):
    """Multiplies in 8 bits where the device does, else unpacks: then it saves memory, and no time."""

    names = ("bits", "scale")
    multiple = multiple_out = 16  # of torch._scaled_mm
    pack = staticmethod(codes.pack_fp8)
    unpack = staticmethod(codes.unpack_fp8)
    scaled: bool | None = None
    """Whether to multiply in 8 bits (None: where the device does)."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = multiplies_fp8(x.device) if self.scaled is None else self.scaled
        if not scaled:
            return super().forward(x)
        y: Tensor = ScaledProduct.apply(x, self.bias, *self.packed)  # type: ignore[no-untyped-call]
        return y


KINDS: dict[Kind, type[QuantisedLinear]] = {"fp8": FP8Linear, "int8": Int8Linear, "nf4": NF4Linear}


def fits(linear: nn.Linear, kind: Kind) -> bool:
    """Whether the layer's sizes are what ``kind`` needs."""
    into = KINDS[kind]
    return not (linear.in_features % into.multiple or linear.out_features % into.multiple_out)


def packed_away(module: nn.Module) -> int:
    """How many weights more the packed parameters in ``module`` stand for than they have numbers."""
    layers = [layer for layer in module.modules() if isinstance(layer, QuantisedLinear)]
    return sum(m.in_features * m.out_features - sum(p.numel() for p in m.packed) for m in layers)


@torch.no_grad()
def quantise_(linear: nn.Linear, kind: Kind, *, dtype: torch.dtype, device: torch.device | None) -> None:
    """Pack the weight of ``linear`` in place, on ``device`` (None: where it is), and free it; it computes in ``dtype``."""
    weight = linear.weight.detach().to(device=device, dtype=torch.float32)
    del linear.weight
    linear.__class__ = KINDS[kind]
    assert isinstance(linear, QuantisedLinear)
    linear.weight_dtype = dtype
    for name, tensor in zip(linear.names, linear.pack(weight), strict=True):
        linear.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
