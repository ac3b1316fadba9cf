"""`gradsurgery.backward`: the three lines that change in a training loop."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.engine.collector import Collector, Update
from gradsurgery.engine.folding import FoldingCollector
from gradsurgery.engine.matrix import MatrixCollector
from gradsurgery.engine.parameters import NamedParameter, trainable_parameters
from gradsurgery.engine.storing import StoringCollector
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules.base import ComponentwiseRule, GramianRule, Rule

DomainLoss = Tensor | Iterable[Tensor]


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


def backward(
    losses: Iterable[DomainLoss],
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    rule: Rule,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> BackwardResult:
    """Run one backward pass per domain and add the rule's update of the D gradients to `.grad`.

    losses: one scalar loss per source domain. Give a generator, and only one domain's graph is
        alive at a time. A domain may also be an iterable of losses, its micro-batches, whose
        gradients are summed before the domain takes part in the rule.
    parameters: `model.parameters()`, or `model.named_parameters()` for errors that name them.
        Frozen ones are left alone. A parameter that a domain's loss does not reach has a zero
        gradient there; one that no loss reaches keeps its `.grad`.
    rule: e.g. `gradsurgery.AgrSum()`. Component-wise rules need the memory of one gradient and of
        the tensor being folded, whatever D is; Gramian rules store the D gradients. Any other
        `Rule` is called on the D gradients as one matrix, with room for at least 4 of them.
    scaler: with float16 autocast, scales each loss. A gradient that overflowed then makes `.grad`
        NaN, so that `scaler.step(optimizer)` skips the step, instead of raising.

    As with `Tensor.backward`, the update is added to a `.grad` that exists. Hooks are removed and
    every `.grad` is as before if anything raises.

    Raises `NonFiniteError` naming the domain and the parameter, `ArgumentError` where nothing can
    be trained or the rule needs more domains.

    >>> weight = torch.zeros(2, requires_grad=True)
    >>> domains = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    >>> from gradsurgery.rules import AgrSum
    >>> result = backward((gradient @ weight for gradient in domains), [weight], AgrSum())
    >>> weight.grad, result.agreeing
    (tensor([4., 0.]), 0.5)
    """
    if scaler is not None and not scaler.is_enabled():
        scaler = None
    if scaler is not None and not rule.scale_equivariant:
        raise ArgumentError(
            f"{rule.name} gives another update for scaled losses; train in float32 or bfloat16, "
            "which need no gradient scaler"
        )
    named = trainable_parameters(parameters)
    before = [parameter.grad for _, parameter in named]
    for _, parameter in named:
        parameter.grad = None
    try:
        with _collector_for(rule, [parameter for _, parameter in named]) as collector:
            values = _run_domains(losses, named, collector, scaler)
            rule.check_domains(len(values))
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
            f"rule is a Rule, found {type(rule).__name__}; build one by name with "
            "gradsurgery.rule(...), or wrap TorchJD's aggregators in gradsurgery.AggregatorRule"
        )
    return MatrixCollector(rule, parameters)


def _run_domains(
    losses: Iterable[DomainLoss],
    named: list[NamedParameter],
    collector: Collector,
    scaler: torch.amp.GradScaler | None,
) -> list[Tensor]:
    inputs = [parameter for _, parameter in named]
    values: list[Tensor] = []
    domains = iter(losses)
    while (domain := next(domains, None)) is not None:
        whole = isinstance(domain, Tensor)
        collector.begin_domain(folds_at_once=whole)
        total = None
        micro_batches = iter([domain] if isinstance(domain, Tensor) else domain)
        del domain  # nothing may keep this graph alive while the next one is built
        while (loss := next(micro_batches, None)) is not None:
            _check_loss_form(loss, len(values))
            value = loss.detach()
            total = value if total is None else total + value
            _run_backward(loss if scaler is None else scaler.scale(loss), inputs)
            del loss
        if total is None:
            raise ArgumentError(f"domain {len(values)} has no micro-batch; give at least one loss")
        collector.end_domain()
        values.append(total)
    return values


def _run_backward(loss: Tensor, inputs: list[Tensor]) -> None:
    try:
        loss.backward(inputs=inputs)
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise ArgumentError(
            "the losses of two domains come from one forward pass, whose graph the first of them "
            "has used up; make one forward pass per domain"
        ) from error


def _check_loss_form(loss: object, domain: int) -> None:
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
