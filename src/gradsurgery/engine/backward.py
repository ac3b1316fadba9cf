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
    agreeing: the fraction in which the domains agree, of the components that are not zero in every
        domain: those with Φ_n = 1 (equation 2), or that the mask of the rule keeps. In [0, 1]; None
        for rules without one, and where all are zero. Components no domain has a gradient for are
        not counted.
    cosines: cosine similarity of the domains' gradients, in pairs; None for rules that do not
        compute inner products.
    zero: the fraction of components that are zero in every domain, which agree by equation 2:
        agreeing · (1 − zero) + zero is the mean of its Φ_n. None for rules without Φ.
    agreeing_by_parameter: `agreeing` within each parameter tensor with components that are not zero
        everywhere, by its name or else its position; None for rules without Φ.
    moving_by_parameter: how many such components it has, the weights of these fractions.
    """

    losses: Float[Tensor, " domains"]
    agreeing: float | None
    cosines: Float[Tensor, "domains domains"] | None
    zero: float | None = None
    agreeing_by_parameter: dict[str, float] | None = None
    moving_by_parameter: dict[str, int] | None = None


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
        after = [_added(old, new) for old, new in zip(before, update.gradients, strict=True)]
    except BaseException:
        for (_, parameter), gradient in zip(named, before, strict=True):
            parameter.grad = gradient
        raise
    for (_, parameter), old, new in zip(named, before, after, strict=True):
        parameter.grad = _written(old, new)
    return _result(torch.stack(values), update, [name for name, _ in named])


def _result(losses: Tensor, update: Update, names: list[str]) -> BackwardResult:
    if update.counts is None:
        return BackwardResult(losses, agreeing=None, cosines=update.cosines)
    agree, move, reached = (sum(column) for column in zip(*update.counts, strict=True))
    moving = {
        name: count for name, (_, count, _) in zip(names, update.counts, strict=True) if count
    }
    by_name = dict(zip(names, update.counts, strict=True))
    return BackwardResult(
        losses,
        agreeing=agree / move if move else None,
        cosines=update.cosines,
        zero=1 - move / max(reached, 1),
        agreeing_by_parameter={name: by_name[name][0] / count for name, count in moving.items()},
        moving_by_parameter=moving,
    )


@torch.no_grad()
def _added(gradient: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The sum of what was in `.grad` and the update, in new memory."""
    if gradient is None or new is None:
        return new if gradient is None else gradient
    return new.add_(gradient)


@torch.no_grad()
def _written(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The new gradient, in the memory of the old one where that can be written to."""
    if old is None or new is None or old is new:
        return new
    plain = old.layout == torch.strided and not old.requires_grad
    if not plain or any(s == 0 and n > 1 for s, n in zip(old.stride(), old.shape, strict=True)):
        return new
    return old.copy_(new)


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
