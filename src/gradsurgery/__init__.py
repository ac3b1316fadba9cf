"""Domain generalization via gradient surgery.

import gradsurgery as gs

rule = gs.AgrSum()
optimizer.zero_grad()
losses = (criterion(model(x), y) for x, y in domain_batches)
gs.backward(losses, model.parameters(), rule)
optimizer.step()
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradsurgery.algorithms import Objective, method
    from gradsurgery.data import Source, open_source
    from gradsurgery.deployment import Predictions, TrainedModel, load_model
    from gradsurgery.deployment.evaluation import evaluate_model
    from gradsurgery.deployment.export import export_model
    from gradsurgery.documents.configuration import RunConfiguration
    from gradsurgery.documents.record import Record
    from gradsurgery.engine import BackwardResult, backward
    from gradsurgery.errors import ArgumentError, GradsurgeryError, NonFiniteError
    from gradsurgery.gradients.conflict import Conflict, domain_conflict
    from gradsurgery.gradients.gradient_gram import GradientGram, gradient_gram
    from gradsurgery.rules import (
        MGDA,
        AggregatorRule,
        AgrEMA,
        AgrRand,
        AgrSum,
        ANDMask,
        CAGrad,
        GradDrop,
        GradVac,
        Mean,
        Median,
        PCGrad,
        Rule,
        SANDMask,
        Sum,
        TrimmedMean,
        as_aggregator,
        rule,
    )
    from gradsurgery.training import train

__version__ = "0.1.0"
__all__ = [
    "MGDA",
    "ANDMask",
    "AggregatorRule",
    "AgrEMA",
    "AgrRand",
    "AgrSum",
    "ArgumentError",
    "BackwardResult",
    "CAGrad",
    "Conflict",
    "GradDrop",
    "GradVac",
    "GradientGram",
    "GradsurgeryError",
    "Mean",
    "Median",
    "NonFiniteError",
    "Objective",
    "PCGrad",
    "Predictions",
    "Record",
    "Rule",
    "RunConfiguration",
    "SANDMask",
    "Source",
    "Sum",
    "TrainedModel",
    "TrimmedMean",
    "as_aggregator",
    "backward",
    "domain_conflict",
    "evaluate_model",
    "export_model",
    "gradient_gram",
    "load_model",
    "method",
    "open_source",
    "rule",
    "train",
]

# Torch is imported with the first name that needs it, so that `gradsurgery --help` is instant.
_HOMES = {
    "BackwardResult": "gradsurgery.engine",
    "backward": "gradsurgery.engine",
    "Objective": "gradsurgery.algorithms",
    "method": "gradsurgery.algorithms",
    "Source": "gradsurgery.data",
    "open_source": "gradsurgery.data",
    "RunConfiguration": "gradsurgery.documents.configuration",
    "Record": "gradsurgery.documents.record",
    "train": "gradsurgery.training",
    "Predictions": "gradsurgery.deployment",
    "TrainedModel": "gradsurgery.deployment",
    "load_model": "gradsurgery.deployment",
    "evaluate_model": "gradsurgery.deployment.evaluation",
    "export_model": "gradsurgery.deployment.export",
    "Conflict": "gradsurgery.gradients.conflict",
    "domain_conflict": "gradsurgery.gradients.conflict",
    "GradientGram": "gradsurgery.gradients.gradient_gram",
    "gradient_gram": "gradsurgery.gradients.gradient_gram",
    "ArgumentError": "gradsurgery.errors",
    "GradsurgeryError": "gradsurgery.errors",
    "NonFiniteError": "gradsurgery.errors",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "gradsurgery.rules")), name)
    place = f"gradsurgery.{name}"
    if name.startswith("_") or not name.isidentifier() or find_spec(place) is None:
        raise AttributeError(f"module 'gradsurgery' has no attribute {name!r}")
    return import_module(place)  # gs.backbones.set_training_mode(…) needs no further import


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
