"""The papers' comparisons as one command each: ``essa reproduce medpeft | essa | small``."""

from essa_dist.reproduce.config import ReproduceConfig
from essa_dist.reproduce.reproduce import reproduce

__all__ = ["ReproduceConfig", "reproduce"]
