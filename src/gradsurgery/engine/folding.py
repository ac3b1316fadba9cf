"""The gradients of component-wise rules: folded as they come, in the memory of one gradient."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.engine.collector import HookedCollector, Update
from gradsurgery.rules.base import ComponentwiseRule, State


class FoldingCollector(HookedCollector):
    """For component-wise rules: folds a gradient during the backward pass and frees it at once."""

    def __init__(self, rule: ComponentwiseRule, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rule = rule
        self._states: list[State | None] = [None] * len(parameters)

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
        if consensus.counts is None:
            return Update(flat, None, None)
        counts = consensus.counts.tolist()
        sizes = [self._parameters[position].numel() for position in reached]
        fractions: list[float | None] = [None] * len(self._parameters)
        for position, count, size in zip(reached, counts, sizes, strict=True):
            fractions[position] = count / max(size, 1)
        return Update(flat, sum(counts) / max(sum(sizes), 1), None, fractions)

    def _receive(self, position: int, gradient: Float[Tensor, " params"] | None) -> None:
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
