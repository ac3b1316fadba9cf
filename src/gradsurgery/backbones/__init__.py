"""Image classifiers by name: torchvision's, timm's, a small built-in CNN, and your own."""

from gradsurgery.backbones.batch_norm import (
    batch_norm_layers,
    check_batch_size,
    has_batch_norm,
    keeping_modes,
    set_training_mode,
)
from gradsurgery.backbones.build import Backbone, build_backbone
from gradsurgery.backbones.networks import SmallCNN, backbone_names
from gradsurgery.backbones.trained import OwnBackbone, rebuild

__all__ = [
    "Backbone",
    "OwnBackbone",
    "SmallCNN",
    "backbone_names",
    "batch_norm_layers",
    "build_backbone",
    "check_batch_size",
    "has_batch_norm",
    "keeping_modes",
    "rebuild",
    "set_training_mode",
]
