"""The ``essa`` command."""

from essa_dist.cli.command import main

__all__ = ["main"]
