"""Vision transformers, built through timm."""

from essa_dist.backbones.build import BackboneConfig, build_architecture, build_backbone
from essa_dist.backbones.vit import Backbone, Features

__all__ = ["Backbone", "BackboneConfig", "Features", "build_architecture", "build_backbone"]
