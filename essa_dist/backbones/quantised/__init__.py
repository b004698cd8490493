"""A frozen trunk in 8 or 4 bits. Frozen weights need but two products: forward, and the gradient of the input."""

from essa_dist.backbones.quantised.linear import FP8Linear, Kind, QuantisedLinear, packed_away
from essa_dist.backbones.quantised.trunk import quantise_trunk

__all__ = ["FP8Linear", "Kind", "QuantisedLinear", "packed_away", "quantise_trunk"]
