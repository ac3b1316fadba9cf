"""Methods by name: the eight of the paper, and any objective+rule."""

from collections.abc import Iterable, Mapping, Sequence
from inspect import isabstract
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from gradsurgery.algorithms.base import Algorithm
from gradsurgery.algorithms.combined import BatchNorm, Combined
from gradsurgery.algorithms.fish import Fish
from gradsurgery.algorithms.mldg import MLDG, OptimizerFactory
from gradsurgery.algorithms.objectives import ERM, OBJECTIVES, Objective
from gradsurgery.doors import Kind, entry_names, is_door, load_object, provenance
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import Hyperparameter, Setting, check_names
from gradsurgery.rules import (
    EXPECTED,
    RULES,
    Mean,
    Rule,
    as_rule,
    build_rule,
    fits_a_rule,
    is_rule_name,
    unknown_rule,
)
from gradsurgery.rules.base import RuleFunction
from gradsurgery.rules.randomness import checked_generator
from gradsurgery.rules.torchjd import PREFIX

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
        MethodInfo("agr-ema", "erm+agr-ema", "agr-sum judged on running means", "this project"),
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
    or a rule alone (with the objective `erm`). Each may also be `package.module:Name`, or a name
    that an installed package registers. Nothing is imported to find out; one `package.module:Name`
    alone is taken for a rule here, and may turn out to be an objective when the method is built.

    Raises `ArgumentError` for any other name.
    """
    if name == Fish.name:
        return None
    if name in METHODS:
        name = METHODS[name].parts
    objective, plus, combining = name.partition("+")
    if not plus:
        if _is_objective_name(name) and not _is_foreign(name):
            return MethodParts(name, "mean")
        objective, combining = "erm", name
    if objective == Fish.name:
        raise ArgumentError(
            f"{name!r}: fish takes its steps one after the other, so there are no domain gradients "
            "at one point for a rule to combine; use fish alone"
        )
    if not plus and not is_rule_name(name):
        known = ", ".join([*METHODS, *OTHER_METHODS])
        raise ArgumentError(
            f"unknown method {name!r}; the methods are {known}, objective+rule, and "
            "package.module:Name"
        )
    if not _is_objective_name(objective):
        known = ", ".join([*OBJECTIVES, MLDG.name, *entry_names("objective")])
        raise ArgumentError(
            f"unknown objective {objective!r}; there are {known}, and package.module:Name"
        )
    if not is_rule_name(combining):
        raise unknown_rule(combining)
    return MethodParts(objective, combining)


def build_method(
    name: str,
    *,
    generator: torch.Generator,
    make_optimizer: OptimizerFactory,
    settings: Settings | None = None,
    batch_norm: BatchNorm = "frozen",
    rule: Rule | None = None,
    host_generator: torch.Generator | None = None,
    label_smoothing: float = 0.0,
) -> Algorithm:
    """The algorithm of the method `name`, with the code that it names imported.

    generator: draws for whatever is random in it.
    host_generator: draws what is needed on the processor, orders and shares of mixing, where
        `generator` is one of an accelerator, which would have to be waited for.
    make_optimizer: a fresh optimiser like the run's, for MLDG's inner steps.
    settings: hyperparameters by "objective.name" or "rule.name", e.g. {"group-dro.eta": 0.05}, the
        owner as the method's name has it: {"mypackage.rules:MyRule.strength": 2}.
    batch_norm: what the network's batch normalisation is to see of the domains, as `Combined` says.
    rule: instead of the mean, where the name is of an objective alone.
    label_smoothing: ε of the cross-entropies that the losses are made of, in [0, 1).

    Raises `ArgumentError` for an unknown name or hyperparameter, a value out of range, "pooled"
    with a method that needs passes of its own, or label smoothing with an objective that takes its
    cross-entropies by itself.
    """
    parts = _resolved(name)
    if rule is not None and ("+" in name or parts is None or parts.rule != Mean.name):
        raise ArgumentError(f"{name} has a rule of its own, found {rule.name} too; give one")
    if batch_norm == "pooled" and (parts is None or parts.objective == MLDG.name):
        raise ArgumentError(
            f"{name} needs passes of its own, found batch_norm 'pooled'; use 'frozen' or "
            "'per-domain'"
        )
    owned = _taken(settings or {}, parts or (Fish.name,), name)
    drawing = host_generator or generator
    if parts is None:
        return _smoothing(Fish(drawing, **owned[Fish.name]), label_smoothing)
    combining = rule or build_rule(parts.rule, owned[parts.rule], generator)
    options = owned[parts.objective]
    if parts.objective == MLDG.name:
        mldg = MLDG(combining, drawing, make_optimizer, **options)
        return _smoothing(mldg, label_smoothing)
    kind = _objective_class(parts.objective)
    check_names(parts.objective, [h.name for h in kind.hyperparameters], options)
    objective = kind(generator=drawing, **options)
    if label_smoothing and not kind.smooths_labels:
        raise ArgumentError(
            f"{parts.objective} takes its cross-entropies by itself, where label smoothing cannot "
            "reach; take them from self.risk and set smooths_labels, or leave the smoothing out"
        )
    objective.label_smoothing = label_smoothing
    return Combined(objective, combining, batch_norm=batch_norm)


def _smoothing(algorithm: Algorithm, label_smoothing: float) -> Algorithm:
    algorithm.label_smoothing = label_smoothing
    return algorithm


def method(
    name: str | Rule | Objective | RuleFunction = "deep-all",
    *,
    rule: Rule | RuleFunction | None = None,
    generator: torch.Generator | None = None,
    make_optimizer: OptimizerFactory | None = None,
    settings: Settings | None = None,
    batch_norm: BatchNorm = "frozen",
) -> Algorithm:
    """A method for a training loop of your own: `method("irm+pcgrad").step(model, batches, …)`.

    name: a method's name, or a rule or an objective of your own: `method(MyRule())`.
    rule: combines the gradients of an objective: `method(MyObjective(), rule=gs.AgrSum())`,
        `method("irm", rule=MyRule())`. By default the mean.
    generator: draws for whatever is random in it; by default one seeded with 0.
    make_optimizer: a fresh optimiser for MLDG's inner steps, e.g. `lambda parameters:
        torch.optim.Adam(parameters, lr=1e-4)`; no other method needs it.
    settings: hyperparameters, e.g. {"irm.penalty": 10}.
    batch_norm: for a model whose batch normalisation is in training mode. "per-domain": one forward
        pass per domain for every method, in which it sees that domain alone. "pooled": one for all
        domains. `gradsurgery.backbones.set_training_mode(model, "frozen")` keeps it in evaluation
        mode instead.

    Count `step` from 1: the methods with annealing drop the optimiser's state when it is over.

    Raises `ArgumentError` for an unknown name or hyperparameter, or a value out of range.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> labels = torch.tensor([0, 1, 0, 1])
    >>> batches = [(torch.randn(4, 3, 2, 2), labels) for _ in range(3)]
    >>> result = method("irm+pcgrad").step(model, batches, optimizer, step=1)
    >>> len(result.losses), result.cosines.shape
    (3, torch.Size([3, 3]))
    >>> summed = method(lambda gradients: gradients.sum(0)).step(model, batches, optimizer, step=2)
    """

    def missing(_: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        raise ArgumentError(
            f"{name} takes inner steps; give make_optimizer, e.g. "
            "lambda parameters: torch.optim.Adam(parameters, lr=1e-4)"
        )

    if batch_norm not in get_args(BatchNorm):
        raise ArgumentError(
            f"batch_norm must be {', '.join(get_args(BatchNorm))}, found {batch_norm!r}"
        )
    if settings and not isinstance(name, str):
        raise ArgumentError(
            f"settings are of a method by name, found {', '.join(map(str, settings))} with "
            f"{type(name).__name__}; give them where you build it"
        )
    generator = checked_generator(generator) or torch.Generator().manual_seed(0)
    if isinstance(name, Objective):
        return Combined(name, Mean() if rule is None else as_rule(rule), batch_norm=batch_norm)
    if not isinstance(name, str):
        if rule is not None:
            raise ArgumentError(
                f"found two rules, {as_rule(name).name} and {as_rule(rule).name}; give one"
            )
        return Combined(ERM(generator=generator), as_rule(name), batch_norm=batch_norm)
    return build_method(
        name,
        generator=generator,
        make_optimizer=make_optimizer or missing,
        settings=settings,
        batch_norm=batch_norm,
        rule=None if rule is None else as_rule(rule),
    )


def settings_of(name: str, settings: Settings) -> dict[str, str | int | float]:
    """The settings that are about a part of the method `name`; nothing is imported."""
    owners = method_parts(name) or (Fish.name,)
    return {key: value for key, value in settings.items() if key.rpartition(".")[0] in owners}


def hyperparameter_names(method: str) -> list[str]:
    """Names of a method's hyperparameters, as `settings` takes them."""
    return [
        f"{owner}.{hyperparameter.name}"
        for owner in _resolved(method) or (Fish.name,)
        for hyperparameter in _hyperparameters(owner)
    ]


def settings_listing() -> list[Setting]:
    """Every hyperparameter of every objective and rule, as `--set` takes it."""
    owners: list[Any] = [*OBJECTIVES.values(), MLDG, Fish, *RULES.values()]
    return [h.listed(owner.name) for owner in owners for h in owner.hyperparameters]


def method_provenance(name: str) -> list[dict[str, str | None]]:
    """Where the parts of the method `name` come from that are not built in, for a run's record.

    Imports them, which training has done before.
    """
    found: list[Any] = []
    parts = _resolved(name)
    if parts is not None and not _is_built_in(parts.objective):
        found.append(_objective_class(parts.objective))
    if parts is not None and not _is_built_in(parts.rule):
        found.append(load_object(parts.rule, "rule", fits=fits_a_rule, expected=EXPECTED))
    return [provenance(part) for part in found]


def _resolved(name: str) -> MethodParts | None:
    """As `method_parts`, with an object alone imported to tell a rule from an objective."""
    if _is_foreign(name):
        found = load_object(
            name,
            "rule",
            fits=lambda found: fits_a_rule(found) or _fits_an_objective(found),
            expected=f"{EXPECTED}, or {_OBJECTIVE}",
        )
        if _fits_an_objective(found):
            return MethodParts(name, "mean")
    return method_parts(name)


def _is_foreign(name: str) -> bool:
    """Whether it is somebody's `package.module:Name`."""
    return is_door(name) and not name.startswith(PREFIX)


def _is_built_in(part: str) -> bool:
    return part in {**OBJECTIVES, **RULES, MLDG.name: MLDG} or part.startswith(PREFIX)


def _is_objective_name(name: str) -> bool:
    return (
        name in OBJECTIVES
        or name == MLDG.name
        or _is_foreign(name)
        or name in entry_names("objective")
    )


def _fits_an_objective(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Objective) and not isabstract(found)


_OBJECTIVE = "a subclass of gradsurgery.Objective"


def _objective_class(name: str) -> type[Objective]:
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    found: type[Objective] = load_object(
        name, "objective", fits=_fits_an_objective, expected=_OBJECTIVE
    )
    return found


def _hyperparameters(owner: str) -> Sequence[Hyperparameter]:
    """Those of a part of a method; TorchJD's aggregators name theirs when they are built."""
    built_in: dict[str, Any] = {**OBJECTIVES, **RULES, MLDG.name: MLDG, Fish.name: Fish}
    found: Any = built_in.get(owner)
    if found is None and not owner.startswith(PREFIX):
        kind: Kind = "objective" if owner in entry_names("objective") else "rule"
        found = load_object(owner, kind, fits=lambda _: True, expected="")
    known: Sequence[Hyperparameter] = getattr(found, "hyperparameters", ())
    return known


def _taken(given: Any, owners: Iterable[str], method: str) -> dict[str, dict[str, Any]]:
    """The settings by owner; an `ArgumentError` for one that belongs to none of them."""
    if not isinstance(given, Mapping):
        found = type(given).__name__
        raise ArgumentError(f"settings are a dict, {{'irm.penalty': 10}} say, found a {found}")
    owned: dict[str, dict[str, Any]] = {owner: {} for owner in owners}
    for key, value in given.items():
        owner, _, name = key.rpartition(".")
        if owner not in owned:
            existing = ", ".join(hyperparameter_names(method)) or "none"
            raise ArgumentError(f"{method} has no hyperparameter {key!r}; it has: {existing}")
        owned[owner][name] = value
    return owned
