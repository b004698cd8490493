"""Heads: of the self-supervised objective, and of tasks that judge whole images; dense ones in ``segmentation``."""

from essa_dist.heads.dino import DINOHead, HeadConfig
from essa_dist.heads.pooled import PooledHead, PooledHeadConfig

__all__ = ["DINOHead", "HeadConfig", "PooledHead", "PooledHeadConfig"]
