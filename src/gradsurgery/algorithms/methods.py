"""Methods by name: the eight of the paper, and any objective+rule."""

import re
from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn

from gradsurgery.algorithms.base import Algorithm
from gradsurgery.algorithms.combined import Combined, Passes
from gradsurgery.algorithms.fish import Fish
from gradsurgery.algorithms.objectives import OBJECTIVES, Objective
from gradsurgery.algorithms.objectives.base import Surroundings
from gradsurgery.errors import ArgumentError
from gradsurgery.rules import RULES, Rule, rule
from gradsurgery.rules.options import check_options
from gradsurgery.rules.torchjd import PREFIX

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Settings = Mapping[str, str | int | float]


class MethodParts(NamedTuple):
    """What a method's name stands for."""

    objective: str
    rule: str


class MethodInfo(NamedTuple):
    """A method as users see it."""

    name: str
    parts: str
    summary: str
    source: str


_MANSILLA = "Mansilla et al. 2021"

METHODS: dict[str, MethodInfo] = {
    info.name: info
    for info in (
        MethodInfo("deep-all", "erm+mean", "one gradient of the pooled domains", _MANSILLA),
        MethodInfo("agr-sum", "erm+agr-sum", "sum where domains agree in sign, else 0", _MANSILLA),
        MethodInfo("agr-rand", "erm+agr-rand", "the same, noise where they conflict", _MANSILLA),
        MethodInfo("pcgrad", "erm+pcgrad", "project conflicting gradients", "Yu et al. 2020"),
        MethodInfo("irm", "irm+mean", "penalise what is not invariant", "Arjovsky et al. 2019"),
        MethodInfo("mldg", "mldg+mean", "a step on one domain helps another", "Li et al. 2018"),
        MethodInfo("mixup", "mixup+mean", "mix images of two domains", "Yan et al. 2020"),
        MethodInfo("group-dro", "group-dro+mean", "weigh the worst domain", "Sagawa et al. 2020"),
    )
}
"""The methods of the paper's Table 1. `OTHER_METHODS` are the field's other ones."""

OTHER_METHODS: dict[str, MethodInfo] = {
    info.name: info
    for info in (
        MethodInfo("vrex", "vrex+mean", "penalise unequal risks", "Krueger et al. 2021"),
        MethodInfo("fishr", "fishr+mean", "match gradient variances", "Rame et al. 2022"),
        MethodInfo("fish", "fish", "match gradients by steps in turn", "Shi et al. 2022"),
        MethodInfo("gradnorm", "gradnorm+mean", "equalise training rates", "Chen et al. 2018"),
        MethodInfo("gradvac", "erm+gradvac", "raise low cosines", "Wang et al. 2021"),
        MethodInfo("cagrad", "erm+cagrad", "near the mean, help the worst", "Liu et al. 2021"),
        MethodInfo("mgda", "erm+mgda", "shortest convex combination", "Sener & Koltun 2018"),
        MethodInfo("and-mask", "erm+and-mask", "keep what τ agree on", "Parascandolo et al. 2021"),
        MethodInfo("sand-mask", "erm+sand-mask", "a smooth AND-mask", "Shahtalebi et al. 2021"),
        MethodInfo("graddrop", "erm+graddrop", "keep one sign, at random", "Chen et al. 2020"),
        MethodInfo("median", "erm+median", "median of each component", "Yin et al. 2018"),
        MethodInfo("trimmed-mean", "erm+trimmed-mean", "mean without extremes", "Yin et al. 2018"),
    )
}


def method_parts(name: str) -> MethodParts | None:
    """The objective and the rule that `name` stands for; None for fish, which has neither.

    A name is one of the lists above, `objective+rule`, an objective alone (with the rule `mean`)
    or a rule alone (with the objective `erm`). Raises `ArgumentError` for any other.
    """
    if name == Fish.name:
        return None
    if name in METHODS:
        name = METHODS[name].parts
    objective, plus, combining = name.partition("+")
    if not plus:
        if name in OBJECTIVES:
            return MethodParts(name, "mean")
        objective, combining = "erm", name
    if objective == Fish.name:
        raise ArgumentError(
            f"{name!r}: fish takes its steps one after the other, so there are no domain gradients "
            "at one point for a rule to combine; use fish alone"
        )
    known_rule = combining in RULES or combining.startswith(PREFIX)
    if objective in OBJECTIVES and known_rule:
        return MethodParts(objective, combining)
    if not plus:
        known = ", ".join([*METHODS, *OTHER_METHODS])
        raise ArgumentError(f"unknown method {name!r}; the methods are {known}, and objective+rule")
    if objective not in OBJECTIVES:
        raise ArgumentError(f"unknown objective {objective!r}; there are {', '.join(OBJECTIVES)}")
    raise ArgumentError(
        f"unknown rule {combining!r}; there are {', '.join(RULES)}, and {PREFIX}NAME"
    )


def build_method(
    name: str,
    *,
    generator: torch.Generator,
    make_optimizer: OptimizerFactory,
    settings: Settings | None = None,
    passes: Passes = "auto",
) -> Algorithm:
    """The algorithm of the method `name`.

    generator: draws for whatever is random in it.
    make_optimizer: a fresh optimiser like the run's, for MLDG's inner steps.
    settings: hyperparameters by "objective.name" or "rule.name", e.g. {"group-dro.eta": 0.05}.
    passes: one pass per domain, or one for all, as `Combined` says.

    Raises `ArgumentError` for an unknown name or hyperparameter, a value out of range, or "pooled"
    with a method that needs passes of its own.
    """
    given = dict(settings or {})
    parts = method_parts(name)
    if parts is None:
        if passes == "pooled":
            raise ArgumentError(
                "fish steps on one domain after the other, found passes 'pooled'; use 'auto' or "
                "'separate'"
            )
        return Fish(generator, **_taken(given, [Fish.name], name)[Fish.name])
    owned = _taken(given, parts, name)
    surroundings = Surroundings(generator, make_optimizer)
    objective = OBJECTIVES[parts.objective](surroundings, **owned[parts.objective])
    combining = rule(parts.rule, generator=generator, **rule_options(parts.rule, owned[parts.rule]))
    return Combined(objective, combining, passes=passes)


def method(
    name: str,
    *,
    generator: torch.Generator | None = None,
    make_optimizer: OptimizerFactory | None = None,
    settings: Settings | None = None,
    passes: Passes = "auto",
) -> Algorithm:
    """A method for a training loop of your own: `method("irm+pcgrad").step(model, batches, …)`.

    generator: draws for whatever is random in it; by default one seeded with 0.
    make_optimizer: a fresh optimiser for MLDG's inner steps, e.g. `lambda parameters:
        torch.optim.Adam(parameters, lr=1e-4)`; no other method needs it.
    settings: hyperparameters, e.g. {"irm.penalty": 10}.
    passes: "separate" is one pass per domain for every method, which a model needs whose batch
        normalisation is in training mode and is to see each domain by itself; "pooled" is one pass
        for all, in which it sees all. `gradsurgery.backbones.set_training_mode(model, "frozen")`
        keeps it in evaluation mode instead, and then "auto" takes the faster of the two.

    Count `step` from 1: the methods with annealing drop the optimiser's state when it is over.

    Raises `ArgumentError` for an unknown name or hyperparameter, or a value out of range.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> labels = torch.tensor([0, 1, 0, 1])
    >>> batches = [(torch.randn(4, 3, 2, 2), labels) for _ in range(3)]
    >>> result = method("irm+pcgrad").step(model, batches, optimizer, step=1)
    >>> len(result.losses), result.cosines.shape
    (3, torch.Size([3, 3]))
    """

    def missing(_: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        raise ArgumentError(
            f"{name} takes inner steps; give make_optimizer, e.g. "
            "lambda parameters: torch.optim.Adam(parameters, lr=1e-4)"
        )

    return build_method(
        name,
        generator=generator or torch.Generator().manual_seed(0),
        make_optimizer=make_optimizer or missing,
        settings=settings,
        passes=passes,
    )


def settings_of(name: str, settings: Settings) -> dict[str, str | int | float]:
    """The settings that are about a part of the method `name`."""
    owners = method_parts(name) or (Fish.name,)
    return {key: value for key, value in settings.items() if key.rpartition(".")[0] in owners}


def rule_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a rule in the types of their defaults, from text as a command line gives it."""
    if name.startswith(PREFIX):
        return {key: _number(value) for key, value in given.items()}
    known = signature(RULES[name]).parameters
    check_options(name, known.keys() - {"generator"}, given)
    options: dict[str, Any] = {}
    for key, value in given.items():
        default = known[key].default
        kind = float if default is None else type(default)
        try:
            options[key] = _CONVERSIONS.get(kind, kind)(value)
        except (TypeError, ValueError, OverflowError) as error:
            what = {bool: "true or false", int: "a whole number"}.get(kind, "a number")
            raise ArgumentError(f"{name}.{key} is {what}, found {value!r}") from error
    return options


def _taken(given: dict[str, Any], owners: Iterable[str], method: str) -> dict[str, dict[str, Any]]:
    """The settings by owner; an `ArgumentError` for one that belongs to none of them."""
    owned: dict[str, dict[str, Any]] = {owner: {} for owner in owners}
    for key, value in given.items():
        owner, _, name = key.rpartition(".")
        if owner not in owned:
            existing = ", ".join(hyperparameter_names(method)) or "none"
            raise ArgumentError(f"{method} has no hyperparameter {key!r}; it has: {existing}")
        owned[owner][name] = value
    return owned


def hyperparameter_names(method: str) -> list[str]:
    """Names of a method's hyperparameters, as `settings` takes them."""
    parts = method_parts(method)
    if parts is None:
        return [f"{Fish.name}.{h.name}" for h in Fish.hyperparameters]
    names = [f"{parts.objective}.{h.name}" for h in OBJECTIVES[parts.objective].hyperparameters]
    kind: type[Objective] | type[Rule] | None = RULES.get(parts.rule)
    options = signature(kind).parameters if kind is not None else {}
    return names + [f"{parts.rule}.{option}" for option in options if option != "generator"]


class Setting(NamedTuple):
    """A hyperparameter as users see it."""

    name: str
    default: str
    meaning: str


def settings_listing() -> list[Setting]:
    """Every hyperparameter of every objective and rule, as `--set` takes it."""
    owners: list[type[Objective] | type[Fish]] = [*OBJECTIVES.values(), Fish]
    listing = [
        Setting(f"{o.name}.{h.name}", f"{h.default:g}", f"{h.meaning}; {h.range} ({h.source})")
        for o in owners
        for h in o.hyperparameters
    ]
    for kind in RULES.values():
        for option, parameter in signature(kind).parameters.items():
            if option != "generator":
                meaning = _documented(kind, option)
                listing.append(Setting(f"{kind.name}.{option}", str(parameter.default), meaning))
    return listing


def _documented(kind: type, option: str) -> str:
    """The paragraph "option: …" of a class's docstring, in one line."""
    text = re.search(rf"^    {option}: ((?:.|\n {{8}})*)", kind.__doc__ or "", re.MULTILINE)
    return " ".join(text[1].split()) if text else ""


def _boolean(value: Any) -> bool:
    if str(value).lower() in ("true", "1", "1.0", "yes"):
        return True
    if str(value).lower() in ("false", "0", "0.0", "no"):
        return False
    raise ValueError(value)


def _whole(value: Any) -> int:
    number = int(value)
    if number != float(value):
        raise ValueError(value)
    return number


_CONVERSIONS: dict[type, Callable[[Any], Any]] = {bool: _boolean, int: _whole}


def _number(value: Any) -> Any:
    """A number where the text is one."""
    for conversion in (_whole, float):
        try:
            return conversion(value)
        except (TypeError, ValueError, OverflowError):
            continue
    return value
