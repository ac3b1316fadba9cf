"""`gradsurgery.backward`: the three lines that change in a training loop."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.engine.accumulators import Accumulator, Update, accumulator_for
from gradsurgery.engine.parameters import NamedParameter, trainable_parameters
from gradsurgery.engine.passes import DomainLoss, DomainPasses, Scaler
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules.base import Rule, RuleFunction, as_rule


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
    rule: Rule | RuleFunction,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> BackwardResult:
    """Run one backward pass per domain and add the rule's update of the D gradients to `.grad`.

    losses: one scalar loss per source domain. Give a generator, and only one domain's graph is
        alive at a time. A list or a tuple, or a tensor of shape [domains], may hold losses that
        share one forward pass, over all domains or tasks: its graph is kept for D backward passes.
        A domain may also be an iterable of losses, its micro-batches, whose gradients are summed
        before the domain takes part in the rule.
    parameters: `model.parameters()`, or `model.named_parameters()` for errors that name them.
        Frozen ones are left alone. A parameter that a domain's loss does not reach has a zero
        gradient there; one that no loss reaches keeps its `.grad`.
    rule: e.g. `gradsurgery.AgrSum()`. Component-wise rules need the memory of one gradient and of
        the tensor being folded, whatever D is; Gramian rules store the D gradients. Any other
        `Rule`, and a function [domains, params] -> [params], is called on the D gradients as one
        matrix, with room for at least 4 of them.
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

    def produce(
        named: list[NamedParameter], accumulator: Accumulator, scaler: Scaler
    ) -> list[Tensor]:
        return DomainPasses([p for _, p in named], accumulator, scaler).run(losses)

    return write_update(parameters, rule, produce, scaler=scaler)


def write_update(
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    rule: Rule | RuleFunction,
    produce: Callable[[list[NamedParameter], Accumulator, Scaler], list[Tensor]],
    *,
    scaler: Scaler = None,
) -> BackwardResult:
    """Add to `.grad` what the rule makes of the gradients that `produce` hands over.

    produce: gives the accumulator the gradients of every domain for the parameters it is called
        with, and returns the domains' losses; `.grad` is None meanwhile.
    """
    _check_single_process()
    rule = as_rule(rule)
    named = trainable_parameters(parameters)
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
        accumulator = accumulator_for(rule, [parameter for _, parameter in named])
        values = produce(named, accumulator, scaler)
        rule.check_domains(len(values))
        _check_losses(values)
        if scaler is None:
            _check_gradients(accumulator, named)
        update = accumulator.finish(len(values), poison=scaler is not None)
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


def _check_single_process() -> None:
    """Each process of a group would combine the gradients of its own batches alone."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        ranks = distributed.get_world_size()
        if ranks > 1:
            raise ArgumentError(
                f"found a process group of {ranks} ranks, whose models would drift apart: gradient "
                "surgery works in one process; train in one"
            )


def _check_losses(values: list[Tensor]) -> None:
    for domain, finite in enumerate(torch.stack(values).isfinite().tolist()):
        if not finite:
            raise NonFiniteError(
                f"the loss of domain {domain} is {values[domain].item()}, expected a finite number;"
                " lower the learning rate or look at that domain's images",
                domain=domain,
            )


def _check_gradients(accumulator: Accumulator, named: list[NamedParameter]) -> None:
    if (where := accumulator.first_non_finite()) is None:
        return
    domain, position = where
    name = named[position][0]
    raise NonFiniteError(
        f"the gradient of domain {domain} at parameter {name} is NaN or infinite; lower the "
        "learning rate, use a wider precision or look at that domain's images",
        domain=domain,
        parameter=name,
    )
