"""The configuration of a run, for users: ``from essa_dist.config import RunConfig``."""

from essa_dist.engine.config import RunConfig

__all__ = ["RunConfig"]
