"""`gradsurgery.backward`: the three lines that change in a training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradsurgery.engine.abstaining import Abstaining, warn_of_heads
from gradsurgery.engine.accumulator import Accumulator, Update, not_finite_update
from gradsurgery.engine.accumulators import accumulator_for
from gradsurgery.engine.parameters import (
    NamedParameter,
    added_gradients,
    kept_gradients,
    trainable_parameters,
    written_gradient,
)
from gradsurgery.engine.passes import DomainLoss, DomainPasses, Scaler
from gradsurgery.errors import ArgumentError, NonFiniteError, check_kind
from gradsurgery.kernels.network import wide_on
from gradsurgery.rules.base import Rule, RuleFunction, as_rule, beyond_precision
from gradsurgery.rules.gramian import cosines_of


@dataclass(frozen=True)
class BackwardResult:
    """What one backward pass over the domains saw.

    losses: the loss of each domain (the sum of its micro-batches), detached.
    update: what the engine saw on the way; names: of the parameters.
    checked: losses to be looked at before `losses`, where what one is has reached the others.
    pooled: whether there was one gradient, of all domains.

    What follows is computed when it is read. On an accelerator only `losses`, `agreement`,
    `cosines` and `found_inf` can be had without waiting for it.
    """

    losses: Float[Tensor, " domains"]
    update: Update = field(default_factory=lambda: Update([]))
    names: Sequence[str] = ()
    checked: Float[Tensor, " domains"] | None = None
    pooled: bool = False

    def __repr__(self) -> str:
        seen = {"losses": self.losses, "agreeing": self.agreeing, "cosines": self.cosines}
        shown = ", ".join(f"{name}={value}" for name, value in seen.items() if value is not None)
        return f"{type(self).__name__}({shown})"

    @property
    def agreement(self) -> Float[Tensor, ""] | None:
        """`agreeing` as a tensor on the device, NaN where all components are zero.

        Of float64 where the device has it.
        """
        if self.update.agreeing is None or self.update.moving is None:
            return None
        dtype = wide_on(self.losses.device)
        agreeing, moving = (
            counts.sum(dtype=torch.int64) for counts in (self.update.agreeing, self.update.moving)
        )
        return agreeing.to(dtype) / moving.to(dtype)

    @property
    def agreeing(self) -> float | None:
        """The fraction in which the domains agree, of the components that are not zero in all:

        those with Φ_n = 1 (equation 2), or that the mask of the rule keeps. In [0, 1]; None for
        rules without one, and where all are zero. Components no domain has a gradient for are not
        counted.
        """
        agree = sum(agree for agree, _, _ in self._counts)
        move = sum(move for _, move, _ in self._counts)
        return agree / move if move else None

    @property
    def cosines(self) -> Float[Tensor, "domains domains"] | None:
        """Cosine similarity of the domains' gradients, in pairs; None for rules without Gramian."""
        return None if self.update.gramian is None else cosines_of(self.update.gramian)

    @property
    def zero(self) -> float | None:
        """The fraction of components that are zero in every domain, which agree by equation 2:

        agreeing · (1 − zero) + zero is the mean of its Φ_n. None for rules without Φ.
        """
        if self.update.agreeing is None:
            return None
        move = sum(move for _, move, _ in self._counts)
        return 1 - move / max(sum(size for _, _, size in self._counts), 1)

    @property
    def agreeing_by_parameter(self) -> dict[str, float] | None:
        """`agreeing` within each parameter tensor with components that are not zero everywhere.

        By the parameter's name or else its position; None for rules without Φ.
        """
        if self.update.agreeing is None:
            return None
        counts = zip(self.names, self._counts, strict=True)
        return {name: agree / move for name, (agree, move, _) in counts if move}

    @property
    def moving_by_parameter(self) -> dict[str, int] | None:
        """How many such components each has, the weights of these fractions."""
        if self.update.agreeing is None:
            return None
        counts = zip(self.names, self._counts, strict=True)
        return {name: move for name, (_, move, _) in counts if move}

    @cached_property
    def _counts(self) -> list[tuple[int, int, int]]:
        return self.update.counts()

    @property
    def found_inf(self) -> Float[Tensor, ""] | None:
        """1.0 where a gradient was not finite, else 0.0, on the device, as fused optimisers take it

        None where that was looked at already.
        """
        return self.update.found

    def check(self) -> None:
        """Raise `NonFiniteError`, naming domain and parameter, where something was not finite.

        Waits for the device, once where all is well. It has been called already unless the check
        was deferred.
        """
        looked_at = [each for each in (self.checked, self.losses) if each is not None]
        if self.update.found is not None:
            *values, found = _read(*looked_at, self.update.found)
            if not found and all(map(isfinite, values)):
                return
        for losses in looked_at:
            check_losses(losses)
        if self.update.flags is None:
            return
        if spoilt := self.update.not_finite():
            domain, position = spoilt[0]
            raise _not_finite(None if self.pooled else domain, self.names[position])
        if self.update.rule is not None and self.update.found:
            raise not_finite_update(self.update.rule)
        if self.update.found:
            raise beyond_precision()


def backward(
    losses: Iterable[DomainLoss],
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    rule: Rule | RuleFunction,
    *,
    scaler: torch.amp.GradScaler | None = None,
    defer_check: bool = False,
    no_say: Mapping[str, Bool[Tensor, "domains _"]] | None = None,
) -> BackwardResult:
    """Run one backward pass per domain and add the rule's update of the D gradients to `.grad`.

    losses: one scalar loss per source domain. Give a generator, and only one domain's graph is
        alive at a time. A list or a tuple, or a tensor of shape [domains], may hold losses that
        share one forward pass, over all domains or tasks: its graph is kept for D backward passes.
        A domain may also be an iterable of losses, its micro-batches, whose gradients are summed
        before the domain takes part in the rule.
    parameters: `model.parameters()`, or `model.named_parameters()` for errors that name them.
        Frozen ones are left alone, and what the losses reach beside them, as a temperature. One
        that a domain's loss does not reach has a zero gradient there, with which no other agrees: a
        rule that asks all to agree learns a head of one task where the others have no say
        (`no_say`), and a warning says so. One that no loss reaches keeps its `.grad`.
    rule: e.g. `gradsurgery.AgrSum()`. Component-wise rules need the memory of one gradient and of
        the tensor being folded, whatever D is (on an accelerator of up to four, without Triton
        of eleven for a moment, and a running total where there are more); Gramian rules store the D
        gradients. Any other `Rule`, and a function [domains, params] -> [params], is called on the
        D gradients as one matrix, with room for at least 4 of them.
    scaler: with float16 autocast, scales each loss. A gradient that overflowed then makes `.grad`
        NaN, so that `scaler.step(optimizer)` skips the step, instead of raising.
    defer_check: do not wait for an accelerator to learn whether all gradients are finite. `.grad`
        is NaN then where one is not; a fused optimiser of torch leaves the weights as they are if
        its `found_inf` is set to `result.found_inf`; `result.check()` raises. On a processor it
        makes no difference.
    no_say: by the name of a parameter (its position, where `parameters` have none) the rows, bool
        [domains, rows], that a domain has no say on: of the last layer those of the classes that it
        lacks, whose logits its loss leaves out; of another task's head all. A rule that asks all to
        agree asks the others there, and sums theirs; where the gradient is not zero the domain has
        a say after all. To other rules a zero is a zero. Rows of a frozen parameter are left alone.

    In a `torch.distributed` group of several processes, each with a part of every domain's images,
    a domain's loss and gradient are the means over them, as DistributedDataParallel's; domains go
    by their order. That all have as many, the same weights and the same update is looked at.

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
        passes = DomainPasses([p for _, p in named], accumulator, scaler)
        values = passes.run(losses)
        unreached = accumulator.joint_unreached(passes.unreached)
        if unreached and getattr(rule, "unanimous", False):
            missing = {name: unreached[at] for at, (name, _) in enumerate(named)}
            warn_of_heads(missing, len(values), no_say or {})
        return values

    return write_update(
        parameters, rule, produce, scaler=scaler, defer_check=defer_check, no_say=no_say
    )


def write_update(
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    rule: Rule | RuleFunction,
    produce: Callable[[list[NamedParameter], Accumulator, Scaler], list[Tensor]],
    *,
    scaler: Scaler = None,
    defer_check: bool = False,
    no_say: Mapping[str, Bool[Tensor, "domains _"]] | None = None,
) -> BackwardResult:
    """Add to `.grad` what the rule makes of the gradients that `produce` hands over.

    produce: gives the accumulator the gradients of every domain for the parameters it is called
        with, and returns the domains' losses; `.grad` is None meanwhile.
    """
    rule = as_rule(rule)
    named = trainable_parameters(parameters, no_say=no_say or ())
    check_kind("scaler", scaler, torch.amp.GradScaler | None, "a torch.amp.GradScaler")
    if scaler is not None and not scaler.is_enabled():
        scaler = None
    if scaler is not None and not rule.scale_equivariant:
        raise ArgumentError(
            f"{rule.name} gives another update for scaled losses, as far as it says; train in "
            "float32 or bfloat16, which need no gradient scaler, or make a function whose update "
            "is scaled as its gradients are a gradsurgery.Rule"
        )
    before = [parameter.grad for _, parameter in named]
    kept = kept_gradients(before)
    for _, parameter in named:
        parameter.grad = None
    try:
        accumulator = _accumulator_for(rule, named, no_say or {})
        flagged = not accumulator.at_once  # the update's own flags tell
        if processes() > 1:
            from gradsurgery.engine.exchange import Exchanging

            accumulator = Exchanging(accumulator, [parameter for _, parameter in named])
        values = produce(named, accumulator, scaler)
        # no domains in one process may be some in another
        losses = accumulator.joint_losses(torch.stack(values) if values else torch.zeros(0))
        rule.check_domains(len(values))
        if not flagged:
            check_losses(losses)
            if scaler is None and (where := accumulator.first_non_finite()) is not None:
                raise _not_finite(where[0], named[where[1]][0])
        update = accumulator.finish(len(values), poison=scaler is not None)
        result = BackwardResult(losses, update, [name for name, _ in named])
        if not flagged and scaler is None:
            _check_update(update, accumulator.bound(len(values)), named)
        elif flagged and not defer_check:
            result.check() if scaler is None else check_losses(losses)
        after = added_gradients(kept, update.gradients)
    except BaseException:
        for (_, parameter), old, same in zip(named, before, kept, strict=True):
            parameter.grad = written_gradient(old, same)
        raise
    for (_, parameter), old, new in zip(named, before, after, strict=True):
        parameter.grad = written_gradient(old, new)
    return replace(result, update=update._replace(gradients=[]))


def _accumulator_for(
    rule: Rule, named: list[NamedParameter], no_say: Mapping[str, Bool[Tensor, "domains _"]]
) -> Accumulator:
    """The rule's accumulator, behind one for domains that have no say where that matters."""
    parameters = [parameter for _, parameter in named]
    accumulator = accumulator_for(rule, parameters)
    if not (no_say and rule.unanimous):
        return accumulator
    rows: dict[int, Tensor] = {}
    for position, (name, parameter) in enumerate(named):
        if (mask := no_say.get(name)) is None:
            continue
        check_kind(f"no_say of {name}", mask, Tensor, "a tensor, bool [domains, rows]")
        fits = mask.dtype == torch.bool and mask.ndim == 2 and mask.shape[1:] == parameter.shape[:1]
        if not fits or any(len(mask) != len(other) for other in rows.values()):
            raise ArgumentError(
                f"no_say of {name} is bool [domains, rows] for {list(parameter.shape)}, found "
                f"{mask.dtype} {list(mask.shape)}"
            )
        rows[position] = mask.to(parameter.device)
    return Abstaining(accumulator, parameters, rows) if rows else accumulator


def processes() -> int:
    """How many processes there are in torch's group, which may train one model together."""
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if there else 1


def _read(*tensors: Tensor) -> list[float]:
    """The values of all; a device is waited for once."""
    device = tensors[-1].device
    values: list[float] = torch.cat([tensor.reshape(-1).to(device) for tensor in tensors]).tolist()
    return values


def check_losses(losses: Float[Tensor, " domains"]) -> None:
    """Raise `NonFiniteError` naming the first domain whose loss is NaN or infinite."""
    for domain, value in enumerate(losses.tolist()):
        if not isfinite(value):
            raise NonFiniteError(
                f"the loss of domain {domain} is {value}, expected a finite number;"
                " lower the learning rate, look at that domain's images, or give a GradScaler as"
                " scaler= and the losses unscaled",
                domain=domain,
            )


def _check_update(update: Update, bound: float, named: list[NamedParameter]) -> None:
    """Raise `NonFiniteError` where finite gradients make an update that is not.

    bound: no component is larger; the update is looked at where that is beyond a precision.
    """
    for gradient, (name, parameter) in zip(update.gradients, named, strict=True):
        if gradient is None or bound < torch.finfo(parameter.dtype).max:
            continue
        if not gradient.isfinite().all():
            raise beyond_precision(name, parameter.dtype)


def _not_finite(domain: int | None, name: str) -> NonFiniteError:
    whose = "the pooled domains" if domain is None else f"domain {domain}"
    return NonFiniteError(
        f"the gradient of {whose} at parameter {name} is NaN or infinite; lower the learning rate, "
        "use a wider precision, look at the images, or hand a GradScaler over (scaler=)",
        domain=domain,
        parameter=name,
    )
