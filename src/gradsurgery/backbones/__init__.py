"""Image classifiers by name: torchvision's, timm's, a small built-in CNN, and your own."""

from gradsurgery.backbones.batch_norm import (
    batch_norm_layers,
    check_batch_size,
    has_batch_norm,
    keeping_modes,
    set_training_mode,
)
from gradsurgery.backbones.build import Backbone, OwnBackbone, build_backbone, rebuild
from gradsurgery.backbones.networks import SmallCNN, backbone_names

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
