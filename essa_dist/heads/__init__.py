"""Projection heads of the objective."""

from essa_dist.heads.dino import DINOHead, HeadConfig

__all__ = ["DINOHead", "HeadConfig"]
