"""The backward passes: one per domain, whose gradients go to an accumulator as they appear.

And whose gradients these are: those of the parameters that are trained.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradsurgery.engine.accumulator import Accumulator, taken_gradients
from gradsurgery.engine.graph import Behind, shared_with_later, what_is_behind
from gradsurgery.errors import ArgumentError

DomainLoss = Tensor | Iterable[Tensor]
Scaler = torch.amp.GradScaler | None
NamedParameter = tuple[str, Tensor]

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
        self._domain = 0
        self._awaited: set[int] = set()
        self._at_once = True
        self.unreached: Counter[int] = Counter()

    def run(self, losses: Iterable[DomainLoss]) -> list[Tensor]:
        """Go back from every domain's loss; returns their values, detached.

        A list or a tuple may hold losses of one forward pass, as may a tensor [domains]. Of
        anything else one domain's graph is alive at a time.
        """
        losses = _as_losses(losses)
        kept = iter(shared_with_later(losses)) if isinstance(losses, list | tuple) else None
        values: list[Tensor] = []
        domains = iter(losses)
        at_once = self._accumulator.at_once
        with _reporting(self._parameters, self._on_gradient, all_of_them=at_once):
            while (domain := next(domains, _END)) is not _END:
                # during the pass, unless further micro-batches add to them
                self._at_once = at_once and isinstance(domain, Tensor)
                self._awaited = set(range(len(self._parameters)))
                parts = _parts(domain, len(values))
                del domain  # nothing may keep this graph alive while the next one is built
                total = None
                while (loss := next(parts, _END)) is not _END:
                    value = checked_loss(loss, len(values)).detach().reshape(())
                    total = value if total is None else total + value
                    self._go_back(loss, retain=kept is not None and next(kept))
                    del loss
                if total is None:
                    raise ArgumentError(
                        f"domain {len(values)} has no micro-batch; give at least one loss"
                    )
                self._end()
                values.append(total)
        return values

    def _on_gradient(self, position: int, parameter: Tensor) -> None:
        _refuse_cleared(position, parameter)
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
        """Hand over what waited for the last micro-batch, and None for what was not reached."""
        self.unreached.update(at for at in self._awaited if self._parameters[at].grad is None)
        if self._accumulator.at_once:
            for position in sorted(self._awaited):
                self._hand_over(position)
        else:
            self._accumulator.receive_domain(self._domain, taken_gradients(self._parameters))
        self._domain += 1

    def _go_back(self, loss: Tensor, *, retain: bool) -> None:
        behind = what_is_behind(loss, f"of domain {self._domain}")
        self._at_once = self._at_once and not behind.own_passes
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        run_backward(scaled, self._parameters, behind, self._domain, retain=retain)


@contextmanager
def _reporting(
    parameters: Sequence[Tensor],
    receive: Callable[[int, Tensor], None],
    *,
    all_of_them: bool,
) -> Iterator[None]:
    """Inside, `receive` hears of each parameter whose `.grad` has its gradient, by its position.

    all_of_them: or else of those alone that have a hook of the user's.
    """
    handles = [
        parameter.register_post_accumulate_grad_hook(partial(receive, position))
        for position, parameter in enumerate(parameters)
        if all_of_them or parameter._post_accumulate_grad_hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_cleared(position: int, parameter: Tensor) -> None:
    """Raise `ArgumentError` where a hook has taken the gradient that was just there."""
    if parameter.grad is None:
        raise ArgumentError(
            f"a post-accumulate hook of parameter {position}, of shape {list(parameter.shape)}, "
            "clears its .grad before the gradient can be read; remove that hook, and do what it "
            "does once the update is in .grad"
        )


def gradients_of(
    loss: Tensor, parameters: Sequence[Tensor], domain: int, scaler: Scaler = None
) -> list[Tensor | None]:
    """The gradients of one domain's loss, for a producer that works with them itself.

    Every `.grad` has to be None, and is None afterwards.
    """
    scaled = checked_loss(loss, domain) if scaler is None else scaler.scale(loss)
    behind = what_is_behind(scaled, f"of domain {domain}")
    with _reporting(parameters, _refuse_cleared, all_of_them=False):
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
            f"the graph of the loss of domain {domain} is used up already; in a loop of your own "
            "give losses that share a graph as a list, for which it is kept; "
            "in an objective yield losses that share none: detach what one takes from other "
            "domains, and take none out of a torch.stack of them"
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


def trainable_parameters(
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]], *, no_say: Iterable[str] = ()
) -> list[NamedParameter]:
    """Each parameter that requires a gradient once, with its name or else its position.

    no_say: names that there have to be, also of parameters that require none.
    """
    if isinstance(parameters, nn.Module):
        raise ArgumentError(
            f"parameters are tensors, found the module {type(parameters).__name__}; give "
            "model.parameters() or model.named_parameters()"
        )
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        found = "a single one" if isinstance(parameters, Tensor) else type(parameters).__name__
        raise ArgumentError(
            f"parameters are several tensors, found {found}; give model.parameters(), or a list"
        )
    named: dict[int, NamedParameter] = {}
    unknown = dict.fromkeys(no_say)
    position = -1
    for position, item in enumerate(parameters):
        name, parameter = str(position), item
        if isinstance(item, tuple) and len(item) == 2:
            name, parameter = item
        if not isinstance(parameter, Tensor):
            raise ArgumentError(
                f"parameters are tensors or (name, tensor) pairs, found {type(parameter).__name__}"
                f" at position {position}; give model.parameters() or model.named_parameters()"
            )
        if isinstance(parameter, nn.UninitializedParameter):
            raise ArgumentError(
                f"parameter {name} has no values before the first pass; call the model once"
            )
        if parameter.requires_grad and not parameter.is_leaf:
            raise ArgumentError(f"parameter {name} is not a leaf tensor, so it has no .grad to set")
        if parameter.requires_grad and not parameter.is_floating_point():
            raise ArgumentError(
                f"parameter {name} is {parameter.dtype}, and rules compare real numbers; make it "
                "real, e.g. torch.view_as_real(parameter), and view it as complex where it is used"
            )
        if parameter.requires_grad:
            _check_memory(name, parameter)
        if id(parameter) not in named:
            unknown.pop(name, None)
        if parameter.requires_grad:
            named.setdefault(id(parameter), (name, parameter))
    _check_known(unknown)
    if not named:
        why = "no parameter requires a gradient; give at least one that is trained"
        used_up = (
            "found no parameters; model.parameters() is used up by its first use: call it anew"
        )
        raise ArgumentError(why if position >= 0 else used_up)
    return list(named.values())


def _check_known(unknown: Iterable[str]) -> None:
    for name in unknown:
        raise ArgumentError(
            f"no_say is by the names of parameters, found {name!r}, which none has; give names of "
            "model.named_parameters() with those, or positions with model.parameters()"
        )


def _check_memory(name: str, parameter: Tensor) -> None:
    if not _fills_memory(parameter):
        raise ArgumentError(
            f"parameter {name} is a part of a larger tensor with gaps in memory; make it a "
            "tensor of its own with .contiguous()"
        )
    if (kind := getattr(parameter, "grad_dtype", parameter.dtype)) != parameter.dtype:
        raise ArgumentError(
            f"parameter {name} is {parameter.dtype} and its gradients {kind}; leave its grad_dtype "
            "as it is, or keep the parameter in that precision and compute under autocast"
        )


def _fills_memory(tensor: Tensor) -> bool:
    """Whether the components lie next to one another, in whatever order."""
    if tensor.numel() == 0 or tensor.is_contiguous():
        return True
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return last + 1 == tensor.numel()
