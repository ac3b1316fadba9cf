"""`gradsurgery.backward`: the three lines that change in a training loop."""

from collections.abc import Iterable

import torch
from torch import Tensor

from gradsurgery.engine.collector import Collector
from gradsurgery.engine.parameters import NamedParameter, trainable_parameters
from gradsurgery.engine.update import BackwardResult, Scaler, check_loss_form, write_update
from gradsurgery.errors import ArgumentError
from gradsurgery.rules.base import Rule

DomainLoss = Tensor | Iterable[Tensor]


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
    named = trainable_parameters(parameters)
    return write_update(
        named,
        rule,
        scaler,
        lambda collector, enabled: _run_domains(losses, named, collector, enabled),
    )


def _run_domains(
    losses: Iterable[DomainLoss],
    named: list[NamedParameter],
    collector: Collector,
    scaler: Scaler,
) -> list[Tensor]:
    inputs = [parameter for _, parameter in named]
    values: list[Tensor] = []
    if isinstance(losses, Tensor) and losses.ndim == 0:
        raise ArgumentError(
            "losses are one scalar per source domain, found a single one; give the domains' losses "
            "as a list or a generator, or call loss.backward() where there is one domain"
        )
    domains = iter(losses)
    while (domain := next(domains, None)) is not None:
        whole = isinstance(domain, Tensor)
        collector.begin_domain(folds_at_once=whole)
        total = None
        micro_batches = iter([domain] if isinstance(domain, Tensor) else domain)
        del domain  # nothing may keep this graph alive while the next one is built
        while (loss := next(micro_batches, None)) is not None:
            check_loss_form(loss, len(values))
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
