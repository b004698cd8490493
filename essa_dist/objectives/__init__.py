"""Trunk, branches and losses put together: one page per objective."""

from essa_dist.objectives.dinov2 import DINOv2Config, DINOv2Objective
from essa_dist.objectives.embed import Embed
from essa_dist.objectives.interface import Objective, StepValues

__all__ = ["DINOv2Config", "DINOv2Objective", "Embed", "Objective", "StepValues"]
