"""D domain gradients in, one update out: pure tensor functions, a rule and its kin a file."""

from collections.abc import Mapping
from inspect import isabstract, signature
from typing import Any

import torch

from gradsurgery import doors
from gradsurgery.errors import ArgumentError, GradsurgeryError, meant
from gradsurgery.hyperparameters import check_names
from gradsurgery.rules import torchjd
from gradsurgery.rules.agreement import AgrRand, AgrSum
from gradsurgery.rules.averages import Mean, Median, Sum, TrimmedMean
from gradsurgery.rules.base import ComponentwiseRule, Consensus, FunctionRule, Rule, as_rule
from gradsurgery.rules.gramian import GramianRule
from gradsurgery.rules.masks import ANDMask, GradDrop, SANDMask
from gradsurgery.rules.minimum_norm import MGDA, CAGrad
from gradsurgery.rules.projections import GradVac, PCGrad
from gradsurgery.rules.remembering import AgrEMA
from gradsurgery.rules.torchjd import AggregatorRule, as_aggregator

__all__ = [
    "MGDA",
    "RULES",
    "ANDMask",
    "AggregatorRule",
    "AgrEMA",
    "AgrRand",
    "AgrSum",
    "CAGrad",
    "ComponentwiseRule",
    "Consensus",
    "FunctionRule",
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
    "as_rule",
    "rule",
]

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Sum,
        Mean,
        AgrSum,
        AgrRand,
        AgrEMA,
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
    """The rule of that name, with its hyperparameters.

    "torchjd:NAME" wraps the aggregator of that name, e.g. `rule("torchjd:Krum", n_byzantine=1)`.
    "package.module:Name" is a rule of your own: a subclass of `Rule`, an instance of one, or a
    function [domains, params] -> [params]. Installed packages may register short names for theirs
    in the entry point group `gradsurgery.rules`.
    `generator` goes to the rules that draw random numbers, the others have no use for it.
    Raises `ArgumentError` for an unknown name or option, `MissingPackageError` where a rule needs a
    package that is not installed.

    >>> rule("agr-sum", reduction="mean")(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    tensor([2., 0.])
    """
    if "settings" in options:
        raise ArgumentError(
            "a rule takes its hyperparameters by name, as gs.rule('cagrad', c=0.4), found "
            "settings, which are gs.method's"
        )
    return build_rule(name, options, generator)


EXPECTED = "a subclass of gradsurgery.Rule, an instance of one, or a function of the gradients"


def is_rule_name(name: str) -> bool:
    """Whether `name` may stand for a rule; nothing is imported to find out."""
    if name in RULES or name.startswith(torchjd.PREFIX):
        return True
    return doors.is_door(name) or name in doors.entry_names("rule")


def unknown_rule(name: str) -> ArgumentError:
    """The error of a name that stands for no rule."""
    known = [*RULES, *doors.entry_names("rule")]
    return ArgumentError(
        f"unknown rule {name!r}{meant(name, known)}; there are {', '.join(known)}, "
        f"{torchjd.PREFIX}NAME for TorchJD's aggregators and package.module:Name"
    )


def fits_a_rule(found: Any) -> bool:
    """Whether it is what a rule of somebody else may be."""
    if isinstance(found, type):
        return issubclass(found, Rule) and not isabstract(found)
    return isinstance(found, Rule) or callable(found)


def found_rule(name: str) -> Any:
    """The class, the instance or the function that `name` stands for, imported where not ours."""
    if name in RULES:
        return RULES[name]
    return doors.load_object(name, "rule", fits=fits_a_rule, expected=EXPECTED)


def build_rule(
    name: str, options: Mapping[str, Any], generator: torch.Generator | None = None
) -> Rule:
    """As `rule`, with options from anywhere, also as text."""
    if not isinstance(name, str):
        raise ArgumentError(f"a rule is named by text, as 'agr-sum', found {name!r:.80}")
    if name.startswith(torchjd.PREFIX):
        return torchjd.aggregator_rule(name.removeprefix(torchjd.PREFIX), options, generator)
    if not is_rule_name(name):
        raise unknown_rule(name)
    found = found_rule(name)
    if not isinstance(found, type):
        check_names(name, (), options)
        if not isinstance(found, Rule):
            _check_takes_gradients(name, found)
        return as_rule(found)
    kind: type[Rule] = found
    check_names(name, [h.name for h in kind.hyperparameters], options)
    takes_generator = "generator" in signature(found).parameters
    drawing = {"generator": generator} if takes_generator else {}
    try:
        return kind(**drawing, **options)
    except GradsurgeryError:
        raise
    except Exception as error:  # code of anybody's
        reason = " ".join(str(error).split())
        raise ArgumentError(
            f"the rule {name!r} cannot be built, {type(error).__name__}: {reason}; mend it"
        ) from error


def _check_takes_gradients(name: str, function: Any) -> None:
    """Raise `ArgumentError` where a function of another package needs more than the gradients."""
    try:
        signature(function).bind(None)
    except TypeError as error:
        raise ArgumentError(
            f"the rule {name!r} is called with the gradients [domains, params] alone: {error}"
        ) from error
    except ValueError:  # some functions in C do not say
        return
