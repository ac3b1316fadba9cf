"""Take each parameter's gradient as autograd produces it, for a rule to combine."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradsurgery.engine.parameters import flat_gradient, shaped_gradient


class Update(NamedTuple):
    """The update per parameter (None where no domain reached it) and what was seen on the way."""

    gradients: list[Tensor | None]
    agreeing: float | None
    cosines: Float[Tensor, "domains domains"] | None
    agreeing_by_parameter: list[float | None] | None = None


class Collector(AbstractContextManager["Collector"]):
    """Collects the gradients of one domain after the other."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._extremes: dict[tuple[int, int], Tensor] = {}  # by domain and parameter
        self._domain = -1

    @abstractmethod
    def begin_domain(self, *, folds_at_once: bool) -> None:
        """The next domain's backward passes follow: a single one (`folds_at_once`) or several."""

    @abstractmethod
    def end_domain(self) -> None:
        """The domain's gradients are complete."""

    @abstractmethod
    def finish(self, *, poison: bool) -> Update:
        """The update; with `poison` it is NaN where any domain's gradient was not finite."""

    def begin_pooled(self, domains: int) -> None:
        """The gradients of so many domains follow, in the order of the parameters' layers."""
        for _ in range(domains):
            self.begin_domain(folds_at_once=False)

    @abstractmethod
    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        """One domain's gradient of one parameter, the domains of a parameter in order.

        The collector owns the gradient; None is one that the domain does not reach.
        """

    def first_non_finite(self) -> tuple[int, int] | None:
        """The domain and the position of the first parameter whose gradient is not finite."""
        if not self._extremes:
            return None
        finite = torch.stack(list(self._extremes.values())).isfinite().all(1).tolist()
        found = [where for where, good in zip(self._extremes, finite, strict=True) if not good]
        return min(found, default=None)

    def _take(self, position: int) -> Float[Tensor, " params"] | None:
        """Remove the parameter's gradient, note its extremes, and return it flat."""
        parameter = self._parameters[position]
        if parameter.grad is None:
            return None
        gradient, parameter.grad = parameter.grad, None
        return self._noted(position, self._domain, gradient)

    def _noted(self, position: int, domain: int, gradient: Tensor) -> Float[Tensor, " params"]:
        """The gradient flat, and its extremes noted."""
        flat = flat_gradient(gradient, self._parameters[position])
        if flat.numel():
            # NaN passes through aminmax, and min and max are finite only where everything is
            self._extremes[domain, position] = torch.stack(torch.aminmax(flat))
        return flat

    def _shaped(self, flat: Tensor | None, position: int, *, poison: bool) -> Tensor | None:
        if flat is None:
            return None
        if poison:
            for (_, at), extremes in self._extremes.items():
                if at == position:
                    flat.add_((extremes * 0).sum())  # 0, or NaN where one is not finite
        return shaped_gradient(flat, self._parameters[position])


class HookedCollector(Collector):
    """Takes a gradient during the backward pass, so that it can be freed at once."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._received: set[int] = set()
        self._at_once = True
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def _receive(self, position: int, gradient: Float[Tensor, " params"] | None) -> None:
        """The domain's gradient of one parameter; None where the domain does not reach it."""

    def __enter__(self) -> "HookedCollector":
        for position, parameter in enumerate(self._parameters):
            self._handles.append(
                parameter.register_post_accumulate_grad_hook(
                    lambda _, position=position: self._on_gradient(position)
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def begin_domain(self, *, folds_at_once: bool) -> None:
        """Hooks take gradients during the pass, unless further micro-batches add to them."""
        self._domain += 1
        self._at_once = folds_at_once
        self._received = set()

    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        """As if the domain's pass had just given it."""
        last, self._domain = self._domain, domain
        flat = None if gradient is None else self._noted(position, domain, gradient)
        self._receive(position, flat)
        self._domain = last

    def end_domain(self) -> None:
        """Take what waited for the last micro-batch, and None for what was not reached."""
        for position in range(len(self._parameters)):
            if position not in self._received:
                self._pass_on(position)

    def _on_gradient(self, position: int) -> None:
        if self._at_once:
            self._pass_on(position)

    def _pass_on(self, position: int) -> None:
        self._received.add(position)
        self._receive(position, self._take(position))
