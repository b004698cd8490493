"""Packed data sets, the sample plan, multi-crop augmentation and batches."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from essa_dist.data.augment import make_crops
    from essa_dist.data.batch import Batch
    from essa_dist.data.loader import CropLoader, DataConfig
    from essa_dist.data.manifest import Manifest
    from essa_dist.data.masks import MaskConfig
    from essa_dist.data.plan import SamplePlan
    from essa_dist.data.shards import PackedImages, UndecodableImage, open_packed
    from essa_dist.data.views import POLICIES, CropConfig

__all__ = [
    "POLICIES",
    "Batch",
    "CropConfig",
    "CropLoader",
    "DataConfig",
    "Manifest",
    "MaskConfig",
    "PackedImages",
    "SamplePlan",
    "UndecodableImage",
    "make_crops",
    "open_packed",
]

_HOME = {
    "POLICIES": "views",
    "Batch": "batch",
    "CropConfig": "views",
    "CropLoader": "loader",
    "DataConfig": "loader",
    "Manifest": "manifest",
    "MaskConfig": "masks",
    "PackedImages": "shards",
    "SamplePlan": "plan",
    "UndecodableImage": "shards",
    "make_crops": "augment",
    "open_packed": "shards",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: the processes of ``essa pack`` would wait 2.6 s each for torch else."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
