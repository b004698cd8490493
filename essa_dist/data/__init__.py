"""Packed data sets, the sample plan, multi-crop augmentation and batches."""

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
