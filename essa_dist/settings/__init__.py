"""Typed, frozen settings: the base class of every owner's ``Config``, and how a tree of them is read and shown.

``load`` reads YAML and ``key=value`` overrides into a Config, ``render`` writes one back with its documentation.
"""

from essa_dist.settings.base import Config
from essa_dist.settings.loading import load
from essa_dist.settings.rendering import as_tree, render, to_yaml

__all__ = ["Config", "as_tree", "load", "render", "to_yaml"]
