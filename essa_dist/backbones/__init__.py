"""Vision transformers, built through timm."""

from essa_dist.backbones.build import BackboneConfig, build_architecture, build_backbone
from essa_dist.backbones.layers import Layers, layer_features
from essa_dist.backbones.vit import Backbone, Features

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Features",
    "Layers",
    "build_architecture",
    "build_backbone",
    "layer_features",
]
