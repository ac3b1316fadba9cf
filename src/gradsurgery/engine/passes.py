"""The backward passes: one per domain, whose gradients go to an accumulator as they appear."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradsurgery.engine.accumulator import Accumulator, taken_gradients
from gradsurgery.engine.graph import Behind, shared_with_later, what_is_behind
from gradsurgery.engine.lanes import Lanes, lanes_on
from gradsurgery.errors import ArgumentError

DomainLoss = Tensor | Iterable[Tensor]
Scaler = torch.amp.GradScaler | None

_END: Any = object()


class DomainPasses:
    """Runs the backward passes of domain after domain and hands over each parameter's gradient.

    Every `.grad` has to be None, and is None afterwards. `unreached` counts the domains that do not
    reach a parameter, by its position.
    """

    def __init__(
        self, parameters: Sequence[Tensor], accumulator: Accumulator, scaler: Scaler
    ) -> None:
        self._parameters = list(parameters)
        self._accumulator = accumulator
        self._scaler = scaler
        self._lanes = Lanes()
        self._held: list[list[Tensor | None]] = []
        self._domain = 0
        self._awaited: set[int] = set()
        self._at_once = True
        self.unreached: Counter[int] = Counter()

    def run(self, losses: Iterable[DomainLoss]) -> list[Tensor]:
        """Go back from every domain's loss; returns their values, detached.

        A list or a tuple may hold losses of one forward pass, as may a tensor [domains]. Of
        anything else one domain's graph is alive at a time, or a few's that run side by side.
        """
        losses = _as_losses(losses)
        kept = iter(shared_with_later(losses)) if isinstance(losses, list | tuple) else None
        at_once = self._accumulator.at_once
        if kept is None and not at_once:
            self._lanes = lanes_on(self._parameters[0].device)
        values: list[Tensor] = []
        domains = iter(losses)
        with _reporting(self._parameters, self._on_gradient, all_of_them=at_once):
            try:
                while (value := self._next_value(domains, kept)) is not None:
                    values.append(value)
            finally:
                self._lanes.join()
            self._hand_over_domains()
        return values

    def _next_value(
        self, domains: Iterator[DomainLoss], kept: Iterator[bool] | None
    ) -> Tensor | None:
        """Take the next domain's pass; returns its loss, None where there is no domain left."""
        with self._lanes.pass_of_next():
            if (domain := next(domains, _END)) is _END:
                return None
            is_one = isinstance(domain, Tensor)
            # during the pass, unless further micro-batches add to them
            self._at_once = self._accumulator.at_once and is_one
            self._awaited = set(range(len(self._parameters)))
            parts = _parts(domain, self._domain)
            del domain  # nothing may keep this graph alive while the next one is built
            total = None
            while (loss := next(parts, _END)) is not _END:
                value = checked_loss(loss, self._domain).detach().reshape(())
                total = value if total is None else total + value
                if is_one:
                    self._lanes.loss_is_made()
                self._go_back(loss, retain=kept is not None and next(kept))
                del loss
            if total is None:
                raise ArgumentError(
                    f"domain {self._domain} has no micro-batch; give at least one loss"
                )
            if not is_one:
                self._lanes.loss_is_made()
            self._end()
        if len(self._held) == self._lanes.together:
            self._lanes.join()
            self._hand_over_domains()
        return total

    def _on_gradient(self, position: int) -> None:
        if not self._at_once:
            return
        if position not in self._awaited:
            raise ArgumentError(
                f"the gradient of domain {self._domain} at parameter {position} comes in parts, "
                "from passes within its pass; give the domain as a list of this one loss"
            )
        self._hand_over(position)

    def _hand_over(self, position: int) -> None:
        self._awaited.discard(position)
        gradient, self._parameters[position].grad = self._parameters[position].grad, None
        self._accumulator.receive(position, self._domain, gradient)

    def _end(self) -> None:
        """Hand over what waited for the last micro-batch, and None for what was not reached.

        Or hold it, until the lanes are joined.
        """
        self.unreached.update(at for at in self._awaited if self._parameters[at].grad is None)
        if self._accumulator.at_once:
            for position in sorted(self._awaited):
                self._hand_over(position)
        else:
            self._held.append(taken_gradients(self._parameters))
        self._domain += 1

    def _hand_over_domains(self) -> None:
        while self._held:
            domain = self._domain - len(self._held)
            self._accumulator.receive_domain(domain, self._held.pop(0))

    def _go_back(self, loss: Tensor, *, retain: bool) -> None:
        behind = what_is_behind(loss, f"of domain {self._domain}")
        self._at_once = self._at_once and not behind.own_passes
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        run_backward(scaled, self._parameters, behind, self._domain, retain=retain)


@contextmanager
def _reporting(
    parameters: Sequence[Tensor],
    receive: Callable[[int], None],
    *,
    all_of_them: bool,
) -> Iterator[None]:
    """Inside, `receive` hears of each parameter whose `.grad` has its gradient, by its position.

    all_of_them: or else of those alone that have a hook of the user's, which is looked after.
    """
    versions: dict[int, int] = {}  # of parameters whose hooks run now, before they did

    def note(position: int, parameter: Tensor, _: Tensor) -> None:
        versions[position] = parameter._version

    def hear(position: int, parameter: Tensor) -> None:
        if parameter.grad is None:
            raise _meddling(position, parameter, "clears its .grad before it can be read")
        if versions.pop(position, parameter._version) != parameter._version:
            raise _meddling(position, parameter, "changes it by the gradient of one domain")
        receive(position)

    def refuse_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for position in versions:
            if id(parameters[position]) in stepped:
                what = "steps an optimiser on the gradient of one domain"
                raise _meddling(position, parameters[position], what)

    watched = {at for at, p in enumerate(parameters) if p._post_accumulate_grad_hooks}
    handles: list[Any] = [register_optimizer_step_pre_hook(refuse_step)] if watched else []
    for position, parameter in enumerate(parameters):
        if position in watched:
            handles.append(parameter.register_hook(partial(note, position, parameter)))
        if position in watched or all_of_them:
            handles.append(parameter.register_post_accumulate_grad_hook(partial(hear, position)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _meddling(position: int, parameter: Tensor, what: str) -> ArgumentError:
    return ArgumentError(
        f"a post-accumulate hook of parameter {position}, of shape {list(parameter.shape)}, "
        f"{what}; remove that hook, and do what it does once the update is in .grad"
    )


def gradients_of(
    loss: Tensor, parameters: Sequence[Tensor], domain: int, scaler: Scaler = None
) -> list[Tensor | None]:
    """The gradients of one domain's loss, for a producer that works with them itself.

    Every `.grad` has to be None, and is None afterwards.
    """
    scaled = checked_loss(loss, domain) if scaler is None else scaler.scale(loss)
    behind = what_is_behind(scaled, f"of domain {domain}")
    with _reporting(parameters, lambda _: None, all_of_them=False):
        run_backward(scaled, parameters, behind, domain, retain=False)
    return taken_gradients(parameters)


def run_backward(
    loss: Tensor, parameters: Sequence[Tensor], behind: Behind, domain: int, *, retain: bool
) -> None:
    """`loss.backward` for the parameters alone, with errors that name the domain.

    Of what else is behind the loss, which is gone back to where it has passes of its own, `.grad`
    is as before afterwards.
    """
    known = set(map(id, parameters))
    others = [leaf for leaf in behind.leaves if id(leaf) not in known]
    beside = others if behind.own_passes else []
    before = [leaf.grad for leaf in beside]
    for leaf in beside:
        leaf.grad = None
    # autograd takes longer where it is told where to end
    inputs = [*parameters, *beside] if others or behind.own_passes else None
    try:
        loss.backward(inputs=inputs, retain_graph=retain)
    except RuntimeError as error:
        if "donated buffers" in str(error):
            raise ArgumentError(
                f"the loss of domain {domain} shares a forward pass of a compiled network, which "
                "was compiled to go back from it once; set torch._functorch.config.donated_buffer "
                "= False before its first pass, or give each domain a forward pass of its own"
            ) from error
        if "backward through the graph a second time" not in str(error):
            raise
        raise ArgumentError(
            f"the graph of the loss of domain {domain} is used up already, by a backward pass "
            "before; make another forward pass; within one call give losses that share a graph as "
            "a list, for which it is kept; in an objective yield losses that share none: detach "
            "what one takes from other domains, and take none out of a torch.stack of them"
        ) from error
    finally:
        for leaf, gradient in zip(beside, before, strict=True):
            leaf.grad = gradient


def checked_loss(loss: Any, domain: int) -> Tensor:
    """The loss; raises `ArgumentError` unless it is one number that depends on what is trained."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = _described(loss)
        if found == type(loss).__name__:
            found = f"{found}; give what the criterion returns, without .item() or float()"
        if isinstance(loss, Tensor):
            found = f"shape {list(loss.shape)}; reduce it, e.g. loss.mean()"
        raise ArgumentError(
            f"the loss of domain {domain} is a tensor with one value, found {found}"
        )
    if loss.is_complex():
        raise ArgumentError(
            f"the loss of domain {domain} is a real number, found {loss.dtype}; take its .real or "
            ".abs()"
        )
    if not loss.requires_grad:
        raise ArgumentError(
            f"the loss of domain {domain} does not depend on a parameter that is trained; compute "
            "it with gradients enabled, from a model with a parameter that requires one"
        )
    return loss


def _as_losses(losses: Any) -> Iterable[DomainLoss]:
    if isinstance(losses, Tensor) and losses.ndim == 0:
        raise ArgumentError(
            "losses are one scalar per source domain, found a single one; give the domains' losses "
            "as a list or a generator, or call loss.backward() where there is one domain"
        )
    if isinstance(losses, Tensor):
        return losses.unbind()
    if not isinstance(losses, Iterable) or isinstance(losses, str | dict):
        raise ArgumentError(
            f"losses are one scalar per source domain, found {_described(losses)}; give them as a "
            "list or a generator"
        )
    return losses


def _parts(domain: Any, number: int) -> Iterator[Any]:
    """The micro-batches of a domain."""
    if isinstance(domain, Tensor) or not isinstance(domain, Iterable):
        return iter([domain])
    if isinstance(domain, str | dict):  # a Hugging Face output is a dict
        checked_loss(domain, number)
    return iter(domain)


def _described(found: Any) -> str:
    name = type(found).__name__
    if isinstance(getattr(found, "loss", None), Tensor):
        return f"a {name}; give its .loss"
    return name
