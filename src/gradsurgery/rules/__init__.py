"""D domain gradients in, one consensus gradient out: pure tensor functions, one rule a file."""

from inspect import signature
from typing import Any

import torch

from gradsurgery.errors import ArgumentError
from gradsurgery.rules import torchjd
from gradsurgery.rules.agr_rand import AgrRand
from gradsurgery.rules.agr_sum import AgrSum
from gradsurgery.rules.and_mask import ANDMask
from gradsurgery.rules.base import ComponentwiseRule, GramianRule, Rule
from gradsurgery.rules.cagrad import CAGrad
from gradsurgery.rules.graddrop import GradDrop
from gradsurgery.rules.gradvac import GradVac
from gradsurgery.rules.median import Median
from gradsurgery.rules.mgda import MGDA
from gradsurgery.rules.options import check_options
from gradsurgery.rules.pcgrad import PCGrad
from gradsurgery.rules.sand_mask import SANDMask
from gradsurgery.rules.sum import Mean, Sum
from gradsurgery.rules.torchjd import AggregatorRule, as_aggregator
from gradsurgery.rules.trimmed_mean import TrimmedMean

__all__ = [
    "MGDA",
    "RULES",
    "ANDMask",
    "AggregatorRule",
    "AgrRand",
    "AgrSum",
    "CAGrad",
    "ComponentwiseRule",
    "GradDrop",
    "GradVac",
    "GramianRule",
    "Mean",
    "Median",
    "PCGrad",
    "Rule",
    "SANDMask",
    "Sum",
    "TrimmedMean",
    "as_aggregator",
    "rule",
]

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Sum,
        Mean,
        AgrSum,
        AgrRand,
        PCGrad,
        GradVac,
        CAGrad,
        MGDA,
        ANDMask,
        SANDMask,
        GradDrop,
        Median,
        TrimmedMean,
    )
}


def rule(name: str, *, generator: torch.Generator | None = None, **options: Any) -> Rule:
    """The rule of that name, e.g. `rule("agr-sum", reduction="mean")`.

    "torchjd:NAME" wraps the aggregator of that name, e.g. `rule("torchjd:Krum", n_byzantine=1)`.
    `generator` goes to the rules that draw random numbers, the others have no use for it.
    Raises `ArgumentError` for an unknown name or option, `MissingPackageError` where a rule needs a
    package that is not installed.
    """
    if name.startswith(torchjd.PREFIX):
        return torchjd.aggregator_rule(name.removeprefix(torchjd.PREFIX), options, generator)
    if name not in RULES:
        raise ArgumentError(
            f"unknown rule {name!r}; the rules are {', '.join(RULES)}, and torchjd:NAME for "
            "TorchJD's aggregators"
        )
    known = set(signature(RULES[name]).parameters)
    check_options(name, known - {"generator"}, options)
    if "generator" in known:
        options["generator"] = generator
    return RULES[name](**options)
