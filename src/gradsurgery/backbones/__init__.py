"""Image classifiers by name: torchvision's, timm's and a small built-in CNN."""

from gradsurgery.backbones.batch_norm import has_batch_norm, set_training_mode
from gradsurgery.backbones.build import Backbone, backbone_names, build_backbone

__all__ = ["Backbone", "backbone_names", "build_backbone", "has_batch_norm", "set_training_mode"]
