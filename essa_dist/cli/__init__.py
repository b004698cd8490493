"""The ``essa`` command."""

from essa_dist.cli.command import main, run

__all__ = ["main", "run"]
