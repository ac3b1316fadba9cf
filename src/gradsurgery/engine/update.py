"""The frame of every backward pass over domains: `.grad` as it was or as the rule says."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.engine.collector import Collector, Update
from gradsurgery.engine.folding import FoldingCollector
from gradsurgery.engine.matrix import MatrixCollector
from gradsurgery.engine.parameters import NamedParameter
from gradsurgery.engine.storing import StoringCollector
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules.base import ComponentwiseRule, GramianRule, Rule

Scaler = torch.amp.GradScaler | None


@dataclass(frozen=True)
class BackwardResult:
    """What one backward pass over the domains saw.

    losses: the loss of each domain (the sum of its micro-batches), detached.
    agreeing: fraction of components with Φ_n = 1 (equation 2), or that the mask of the rule keeps,
        in [0, 1]; None for rules without one. Components no domain has a gradient for are not
        counted.
    cosines: cosine similarity of the domains' gradients, in pairs; None for rules that do not
        compute inner products.
    agreeing_by_parameter: that fraction within each parameter tensor that a domain reaches, by its
        name or else its position; None where `agreeing` is.
    """

    losses: Float[Tensor, " domains"]
    agreeing: float | None
    cosines: Float[Tensor, "domains domains"] | None
    agreeing_by_parameter: dict[str, float] | None = None


def write_update(
    named: list[NamedParameter],
    rule: Rule,
    scaler: Scaler,
    run: Callable[[Collector, Scaler], list[Tensor]],
) -> BackwardResult:
    """Add to `.grad` what the rule makes of the gradients that `run` gives the collector.

    run: gives the gradients of the domains to the collector and returns the domains' losses;
        `.grad` is None meanwhile.
    """
    if scaler is not None and not scaler.is_enabled():
        scaler = None
    if scaler is not None and not rule.scale_equivariant:
        raise ArgumentError(
            f"{rule.name} gives another update for scaled losses; train in float32 or bfloat16, "
            "which need no gradient scaler"
        )
    before = [parameter.grad for _, parameter in named]
    for _, parameter in named:
        parameter.grad = None
    try:
        with _collector_for(rule, [parameter for _, parameter in named]) as collector:
            values = run(collector, scaler)
            rule.check_run(len(values))
            _check_losses(values)
            if scaler is None:
                _check_gradients(collector, named)
            update = collector.finish(poison=scaler is not None)
    except BaseException:
        for (_, parameter), gradient in zip(named, before, strict=True):
            parameter.grad = gradient
        raise
    for (_, parameter), gradient, new in zip(named, before, update.gradients, strict=True):
        parameter.grad = (
            new if gradient is None else gradient if new is None else gradient.add_(new)
        )
    return BackwardResult(
        torch.stack(values), update.agreeing, update.cosines, _by_name(update, named)
    )


def _by_name(update: Update, named: list[NamedParameter]) -> dict[str, float] | None:
    if update.agreeing_by_parameter is None:
        return None
    fractions = zip(named, update.agreeing_by_parameter, strict=True)
    return {name: fraction for (name, _), fraction in fractions if fraction is not None}


def _collector_for(rule: Rule, parameters: list[Tensor]) -> Collector:
    if isinstance(rule, ComponentwiseRule):
        return FoldingCollector(rule, parameters)
    if isinstance(rule, GramianRule):
        return StoringCollector(rule, parameters)
    if not isinstance(rule, Rule):
        raise ArgumentError(
            f"rule is a Rule, found {_found(rule)}; build one by name with "
            "gradsurgery.rule(...), or wrap TorchJD's aggregators in gradsurgery.AggregatorRule"
        )
    return MatrixCollector(rule, parameters)


def _found(rule: object) -> str:
    if isinstance(rule, type):
        return f"the class {rule.__name__} instead of {rule.__name__}()"
    return type(rule).__name__


def check_loss_form(loss: object, domain: int) -> None:
    """Raise `ArgumentError` unless it is one number that depends on what is trained."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ArgumentError(
            f"the loss of domain {domain} is a tensor with one value, found {found}"
        )
    if not loss.requires_grad:
        raise ArgumentError(
            f"the loss of domain {domain} does not depend on a parameter that is trained; compute "
            "it with gradients enabled, from a model with a parameter that requires one"
        )


def _check_losses(values: list[Tensor]) -> None:
    for domain, finite in enumerate(torch.stack(values).isfinite().tolist()):
        if not finite:
            raise NonFiniteError(
                f"the loss of domain {domain} is {values[domain].item()}, expected a finite number;"
                " lower the learning rate or look at that domain's images",
                domain=domain,
            )


def _check_gradients(collector: Collector, named: list[NamedParameter]) -> None:
    if (where := collector.first_non_finite()) is None:
        return
    domain, position = where
    name = named[position][0]
    raise NonFiniteError(
        f"the gradient of domain {domain} at parameter {name} is NaN or infinite; lower the "
        "learning rate, use a wider precision or look at that domain's images",
        domain=domain,
        parameter=name,
    )
