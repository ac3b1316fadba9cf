"""Domain generalization via gradient surgery.

import gradsurgery as gs

rule = gs.AgrSum()
optimizer.zero_grad()
losses = (criterion(model(x), y) for x, y in domain_batches)
gs.backward(losses, model.parameters(), rule)
optimizer.step()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradsurgery.algorithms import method
    from gradsurgery.engine import BackwardResult, backward
    from gradsurgery.errors import ArgumentError, GradsurgeryError, NonFiniteError
    from gradsurgery.gradients.conflict import Conflict, domain_conflict
    from gradsurgery.gradients.gradient_gram import GradientGram, gradient_gram
    from gradsurgery.rules import (
        MGDA,
        AggregatorRule,
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

__version__ = "0.1.0"
__all__ = [
    "MGDA",
    "ANDMask",
    "AggregatorRule",
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
    "PCGrad",
    "Rule",
    "SANDMask",
    "Sum",
    "TrimmedMean",
    "as_aggregator",
    "backward",
    "domain_conflict",
    "gradient_gram",
    "method",
    "rule",
]

# Torch is imported with the first name that needs it, so that `gradsurgery --help` is instant.
_HOMES = {
    "BackwardResult": "gradsurgery.engine",
    "backward": "gradsurgery.engine",
    "method": "gradsurgery.algorithms",
    "Conflict": "gradsurgery.gradients.conflict",
    "domain_conflict": "gradsurgery.gradients.conflict",
    "GradientGram": "gradsurgery.gradients.gradient_gram",
    "gradient_gram": "gradsurgery.gradients.gradient_gram",
    "ArgumentError": "gradsurgery.errors",
    "GradsurgeryError": "gradsurgery.errors",
    "NonFiniteError": "gradsurgery.errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gradsurgery' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "gradsurgery.rules")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
