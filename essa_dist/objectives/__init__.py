"""Trunk, branches and losses put together: one page per objective."""

from essa_dist.objectives.dinov2 import DINOv2Config, DINOv2Objective

__all__ = ["DINOv2Config", "DINOv2Objective"]
