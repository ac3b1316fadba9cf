"""Methods from their names, with their hyperparameters."""

from collections.abc import Iterable, Mapping
from inspect import isabstract
from typing import Any, get_args

import torch
from torch import nn

from gradsurgery.algorithms.base import Algorithm
from gradsurgery.algorithms.combined import BatchNorm, Combined
from gradsurgery.algorithms.meta_learning import MLDG, Fish, OptimizerFactory
from gradsurgery.algorithms.names import MethodParts, is_built_in, is_foreign, method_parts
from gradsurgery.algorithms.objectives import ERM, OBJECTIVES, Objective
from gradsurgery.doors import Kind, load_object, provenance
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import Setting, check_names
from gradsurgery.rules import (
    EXPECTED,
    RULES,
    Mean,
    Rule,
    as_rule,
    build_rule,
    fits_a_rule,
    found_rule,
)
from gradsurgery.rules.base import RuleFunction
from gradsurgery.rules.randomness import checked_generator
from gradsurgery.rules.torchjd import PREFIX

Settings = Mapping[str, str | int | float]


def build_method(
    name: str,
    *,
    generator: torch.Generator,
    make_optimizer: OptimizerFactory,
    settings: Settings | None = None,
    batch_norm: BatchNorm = "frozen",
    rule: Rule | None = None,
    host_generator: torch.Generator | None = None,
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

    Raises `ArgumentError` for an unknown name or hyperparameter, a value out of range, or "pooled"
    with a method that needs passes of its own.
    """
    parts = _resolved(name)
    if rule is not None and ("+" in name or parts is None or parts.rule != Mean.name):
        raise ArgumentError(f"{name} has a rule of its own, found {rule.name} too; give one")
    if batch_norm == "pooled" and (parts is None or parts.objective == MLDG.name):
        raise ArgumentError(
            f"{name} needs passes of its own, found batch_norm 'pooled'; use 'frozen' or "
            "'per-domain'"
        )
    owned = _taken({} if settings is None else settings, parts or (Fish.name,), name)
    drawing = host_generator or generator
    if parts is None:
        return Fish(drawing, **owned[Fish.name])
    combining = rule or build_rule(parts.rule, owned[parts.rule], generator)
    options = owned[parts.objective]
    if parts.objective == MLDG.name:
        return MLDG(combining, drawing, make_optimizer, **options)
    kind: type[Objective] = _part(parts.objective, "objective")
    check_names(parts.objective, [h.name for h in kind.hyperparameters], options)
    objective = kind(generator=drawing, **options)
    return Combined(objective, combining, batch_norm=batch_norm)


def method(
    name: str | Rule | Objective | RuleFunction = "deep-all",
    *,
    rule: Rule | RuleFunction | None = None,
    generator: torch.Generator | None = None,
    make_optimizer: OptimizerFactory | None = None,
    settings: Settings | None = None,
    batch_norm: BatchNorm = "frozen",
    **misplaced: Any,
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
    >>> batches = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])) for _ in range(3)]
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

    _check_none(misplaced, name)
    if not isinstance(batch_norm, str) or batch_norm not in get_args(BatchNorm):
        raise ArgumentError(
            f"batch_norm must be {', '.join(get_args(BatchNorm))}, found {batch_norm!r:.80}"
        )
    if not isinstance(name, str) and settings:
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
        make_optimizer=missing if make_optimizer is None else make_optimizer,
        settings=settings,
        batch_norm=batch_norm,
        rule=None if rule is None else as_rule(rule),
    )


def _check_none(misplaced: Mapping[str, Any], method: Any) -> None:
    """Raise an error for keywords that there are not, which may be hyperparameters."""
    for key, value in misplaced.items():
        known = hyperparameter_names(method) if isinstance(method, str) else []
        owned = [name for name in known if name.endswith(f".{key}")]
        if not owned:
            raise TypeError(f"method() got an unexpected keyword argument {key!r}")
        raise ArgumentError(
            f"a method takes its hyperparameters as settings, settings={{{owned[0]!r}: "
            f"{value!r:.80}}} say, found {key} by itself"
        )


def settings_of(name: str, settings: Settings) -> dict[str, str | int | float]:
    """The settings that are about a part of the method `name`; nothing is imported."""
    owners = method_parts(name) or (Fish.name,)
    return {key: value for key, value in settings.items() if key.rpartition(".")[0] in owners}


def hyperparameter_names(method: str) -> list[str]:
    """Names of a method's hyperparameters, as `settings` takes them."""
    return [
        f"{owner}.{hyperparameter.name}"
        for owner, kind in _owners(method)
        for hyperparameter in getattr(_part(owner, kind), "hyperparameters", ())
    ]


def settings_listing() -> list[Setting]:
    """Every hyperparameter of every objective and rule, as `--set` takes it."""
    owners: list[Any] = [*OBJECTIVES.values(), MLDG, Fish, *RULES.values()]
    return [h.listed(owner.name) for owner in owners for h in owner.hyperparameters]


def method_provenance(name: str) -> list[dict[str, str | None]]:
    """Where the parts of the method `name` come from that are not built in, for a run's record.

    Imports them, which training has done before.
    """
    return [provenance(_part(o, kind)) for o, kind in _owners(name) if not is_built_in(o)]


def _resolved(name: str) -> MethodParts | None:
    """As `method_parts`, with an object alone imported to tell a rule from an objective."""
    if is_foreign(name):
        found = load_object(
            name,
            "rule",
            fits=lambda found: fits_a_rule(found) or _fits_an_objective(found),
            expected=f"{EXPECTED}, or {_OBJECTIVE}",
        )
        if _fits_an_objective(found):
            return MethodParts(name, "mean")
    return method_parts(name)


def _owners(method: str) -> list[tuple[str, Kind]]:
    """The parts of a method, which have its hyperparameters, and what each is."""
    kinds: tuple[Kind, Kind] = ("objective", "rule")
    return list(zip(_resolved(method) or (Fish.name,), kinds, strict=False))


_OBJECTIVE = "a subclass of gradsurgery.Objective"


def _fits_an_objective(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Objective) and not isabstract(found)


def _part(name: str, kind: Kind) -> Any:
    """What a part of a method is; None for TorchJD's aggregators, which building them finds."""
    if kind == "rule":
        return None if name.startswith(PREFIX) else found_rule(name)
    built_in: dict[str, Any] = {**OBJECTIVES, MLDG.name: MLDG, Fish.name: Fish}
    if name in built_in:
        return built_in[name]
    return load_object(name, "objective", fits=_fits_an_objective, expected=_OBJECTIVE)


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
