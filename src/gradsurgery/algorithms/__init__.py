"""What one training step is: a method by its name, one file an algorithm."""

from typing import NamedTuple

import torch

from gradsurgery.algorithms.base import Algorithm, Batch
from gradsurgery.algorithms.deep_all import DeepAll
from gradsurgery.algorithms.surgery import Surgery
from gradsurgery.errors import ArgumentError
from gradsurgery.rules import Mean, rule

__all__ = ["METHODS", "Algorithm", "Batch", "DeepAll", "MethodInfo", "Surgery", "build_algorithm"]


class MethodInfo(NamedTuple):
    """A method as users see it."""

    name: str
    summary: str
    source: str


_PAPER = "Mansilla et al., ICCV 2021"

METHODS: dict[str, MethodInfo] = {
    method.name: method
    for method in (
        MethodInfo("deep-all", "one gradient of the pooled batch of all source domains", _PAPER),
        MethodInfo("agr-sum", "sum where the domains agree in sign, zero elsewhere", _PAPER),
        MethodInfo("agr-rand", "sum where they agree in sign, Gaussian noise elsewhere", _PAPER),
        MethodInfo(
            "pcgrad",
            "project each domain's gradient off those it conflicts with, then sum",
            "Yu et al., NeurIPS 2020",
        ),
    )
}


def build_algorithm(
    name: str, *, generator: torch.Generator, per_domain_passes: bool = False
) -> Algorithm:
    """The algorithm of the method `name`; `generator` draws for the rules that are random.

    `per_domain_passes`: deep-all averages one pass per domain, so that batch normalisation sees
    each domain by itself, as it does in the other methods. Raises `ArgumentError` for an unknown
    name.
    """
    if name not in METHODS:
        raise ArgumentError(f"unknown method {name!r}; the methods are {', '.join(METHODS)}")
    if name == "deep-all":
        return Surgery(Mean()) if per_domain_passes else DeepAll()
    return Surgery(rule(name, generator=generator))
