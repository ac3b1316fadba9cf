"""Take each parameter's gradient as autograd produces it, and hand it to the rule."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradsurgery.engine.parameters import flat_gradient, shaped_gradient
from gradsurgery.errors import ArgumentError
from gradsurgery.rules.base import ComponentwiseRule, GramianRule, Rule, State
from gradsurgery.rules.gramian import cosines_of, gramian_of, weighted_sum


class Update(NamedTuple):
    """The update per parameter (None where no domain reached it) and what was seen on the way."""

    gradients: list[Tensor | None]
    agreeing: float | None
    cosines: Float[Tensor, "domains domains"] | None


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
        flat = flat_gradient(parameter.grad, parameter)
        parameter.grad = None
        if flat.numel():
            # NaN passes through aminmax, and min and max are finite only where everything is
            self._extremes[self._domain, position] = torch.stack(torch.aminmax(flat))
        return flat

    def _shaped(self, flat: Tensor | None, position: int, *, poison: bool) -> Tensor | None:
        if flat is None:
            return None
        if poison:
            for (_, at), extremes in self._extremes.items():
                if at == position:
                    flat.add_((extremes * 0).sum())  # 0, or NaN where one is not finite
        return shaped_gradient(flat, self._parameters[position])


class FoldingCollector(Collector):
    """For component-wise rules: folds a gradient during the backward pass and frees it at once."""

    def __init__(self, rule: ComponentwiseRule, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rule = rule
        self._states: list[State | None] = [None] * len(parameters)
        self._folded: set[int] = set()
        self._folds_at_once = True
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "FoldingCollector":
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
        """Hooks fold during the pass, unless further micro-batches add to the gradient."""
        self._domain += 1
        self._folds_at_once = folds_at_once
        self._folded = set()

    def end_domain(self) -> None:
        """Fold what waited for the last micro-batch, and zeros for what was not reached."""
        for position in range(len(self._parameters)):
            if position not in self._folded:
                self._fold(position, self._take(position))

    def finish(self, *, poison: bool) -> Update:
        """The rule's update over the whole network."""
        reached = [position for position, state in enumerate(self._states) if state is not None]
        states = [state for state in self._states if state is not None]
        flat: list[Tensor | None] = [None] * len(self._parameters)
        if not states:
            return Update(flat, None, None)
        consensus = self._rule.finish(states, self._domain + 1)
        for position, update in zip(reached, consensus.updates, strict=True):
            flat[position] = self._shaped(update, position, poison=poison)
        agreeing = None if consensus.agreeing is None else consensus.agreeing.item()
        return Update(flat, agreeing, None)

    def _on_gradient(self, position: int) -> None:
        if self._folds_at_once:
            self._fold(position, self._take(position))

    def _fold(self, position: int, gradient: Float[Tensor, " params"] | None) -> None:
        self._folded.add(position)
        state = self._states[position]
        if state is not None:
            zero = self._zero(position) if gradient is None else gradient
            self._states[position] = self._rule.fold(state, zero)
        elif gradient is not None:
            self._states[position] = self._started(position, gradient)

    def _started(self, position: int, gradient: Float[Tensor, " params"]) -> State:
        """The state with `gradient` in it, after zeros for the domains that did not reach it."""
        if self._domain == 0:
            return self._rule.start(gradient)
        state = self._rule.start(torch.zeros_like(gradient))
        for _ in range(1, self._domain):
            state = self._rule.fold(state, self._zero(position))
        return self._rule.fold(state, gradient)

    def _zero(self, position: int) -> Float[Tensor, " params"]:
        parameter = self._parameters[position]
        return parameter.new_zeros(()).expand(parameter.numel())


class StoringCollector(Collector):
    """For Gramian rules: keeps the gradients of every domain until the weights are known."""

    def __init__(self, rule: GramianRule, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rule = rule
        self._rows: list[list[Tensor | None]] = []

    def begin_domain(self, *, folds_at_once: bool) -> None:
        """Autograd adds up the micro-batches of the domain by itself."""
        self._domain += 1

    def end_domain(self) -> None:
        """Keep the domain's gradients."""
        self._rows.append([self._take(position) for position in range(len(self._parameters))])

    def __exit__(self, *_: object) -> None:
        """Nothing was installed on the parameters."""

    def finish(self, *, poison: bool) -> Update:
        """Σ_d w_d g_d with the rule's weights, in the memory of the first gradient."""
        columns = [self._column(position) for position in range(len(self._parameters))]
        reached = [column for column in columns if column]
        if not reached:
            return Update([None] * len(columns), None, None)
        gramian = torch.stack([gramian_of(column) for column in reached]).sum(0)
        weights = self._rule.weights(gramian) if gramian.isfinite().all() else gramian[0]
        gradients = [
            self._shaped(weighted_sum(column, weights, out=column[0]), position, poison=poison)
            if column
            else None
            for position, column in enumerate(columns)
        ]
        return Update(gradients, None, cosines_of(gramian))

    def _column(self, position: int) -> list[Tensor]:
        """One parameter's gradients, one a domain; zeros where a domain does not reach it."""
        column = [row[position] for row in self._rows]
        parameter = self._parameters[position]
        if all(gradient is None for gradient in column):
            return []
        return [
            parameter.new_zeros(parameter.numel()) if gradient is None else gradient
            for gradient in column
        ]


def collector_for(rule: Rule, parameters: Sequence[Tensor]) -> Collector:
    """The collector that fits the kind of the rule."""
    if isinstance(rule, ComponentwiseRule):
        return FoldingCollector(rule, parameters)
    if isinstance(rule, GramianRule):
        return StoringCollector(rule, parameters)
    raise ArgumentError(
        f"rule is a ComponentwiseRule or a GramianRule, found {type(rule).__name__}; "
        "build one by name with gradsurgery.rule(...)"
    )
