"""One file for each upstream layout of weights: its names against timm's, and what is not the trunk's.

A format is a module with ``matches(state)``, which tells it by its names, and ``to_timm(state, vit, notes)``, both
for the tensors of one trunk without prefix. Those that we can also write have ``from_timm(state, vit)``.
"""

from types import ModuleType

from torch import Tensor

from essa_dist.backbones.formats import dinov2, huggingface, mae, timm
from essa_dist.errors import WeightsError

FORMATS: dict[str, ModuleType] = {
    "transformers": huggingface,
    "MAE": mae,  # before DINOv2: both have a mask_token
    "DINOv2": dinov2,
    "timm": timm,
}


def find_format(state: dict[str, Tensor]) -> str:
    """The first of ``FORMATS`` that knows the names. Raises WeightsError for none."""
    for name, module in FORMATS.items():
        if module.matches(state):
            return name
    raise WeightsError(f"none of the known layouts has these names ({', '.join(sorted(state)[:3])} ...)")
