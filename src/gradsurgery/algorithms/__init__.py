"""What one training step is: an objective and a rule, or an algorithm of its own."""

from gradsurgery.algorithms.base import Algorithm, Step
from gradsurgery.algorithms.combined import Combined
from gradsurgery.algorithms.meta_learning import MLDG, Fish
from gradsurgery.algorithms.methods import (
    build_method,
    hyperparameter_names,
    method,
    method_provenance,
    settings_listing,
    settings_of,
)
from gradsurgery.algorithms.names import METHODS, OTHER_METHODS, MethodInfo, method_parts
from gradsurgery.algorithms.objectives import OBJECTIVES, Batch, Objective

__all__ = [
    "METHODS",
    "MLDG",
    "OBJECTIVES",
    "OTHER_METHODS",
    "Algorithm",
    "Batch",
    "Combined",
    "Fish",
    "MethodInfo",
    "Objective",
    "Step",
    "build_method",
    "hyperparameter_names",
    "method",
    "method_parts",
    "method_provenance",
    "settings_listing",
    "settings_of",
]
