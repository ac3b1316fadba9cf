"""D domain gradients in, one consensus gradient out: pure tensor functions, one rule a file."""

from inspect import signature
from typing import Any

import torch

from gradsurgery.errors import ArgumentError
from gradsurgery.rules.agr_rand import AgrRand
from gradsurgery.rules.agr_sum import AgrSum
from gradsurgery.rules.base import ComponentwiseRule, GramianRule, Rule
from gradsurgery.rules.pcgrad import PCGrad
from gradsurgery.rules.sum import Mean, Sum

__all__ = [
    "RULES",
    "AgrRand",
    "AgrSum",
    "ComponentwiseRule",
    "GramianRule",
    "Mean",
    "PCGrad",
    "Rule",
    "Sum",
    "rule",
]

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Sum, Mean, AgrSum, AgrRand, PCGrad)}


def rule(name: str, *, generator: torch.Generator | None = None, **options: Any) -> Rule:
    """The rule of that name, e.g. `rule("agr-sum", reduction="mean")`.

    `generator` goes to the rules that draw random numbers, the others have no use for it.
    Raises `ArgumentError` for an unknown name or option.
    """
    if name not in RULES:
        raise ArgumentError(f"unknown rule {name!r}; the rules are {', '.join(RULES)}")
    known = set(signature(RULES[name]).parameters)
    if unknown := sorted(set(options) - known):
        choices = ", ".join(sorted(known - {"generator"})) or "none"
        raise ArgumentError(f"rule {name!r} has no option {unknown[0]!r}; it has: {choices}")
    if "generator" in known:
        options["generator"] = generator
    return RULES[name](**options)
