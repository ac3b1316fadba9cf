"""The gradients of Gramian rules: kept until the weights are known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.engine.collector import Collector, Update
from gradsurgery.rules.base import GramianRule
from gradsurgery.rules.gramian import cosines_of, gramian_of, weighted_sum


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

    def begin_pooled(self, domains: int) -> None:
        """Make room for all gradients."""
        self._rows = [[None] * len(self._parameters) for _ in range(domains)]

    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        """Keep it."""
        if gradient is not None:
            self._rows[domain][position] = self._noted(position, domain, gradient)

    def __exit__(self, *_: object) -> None:
        """Nothing was installed on the parameters."""

    def finish(self, *, poison: bool) -> Update:
        """Σ_d w_d g_d with the rule's weights, in the memory of the first gradient."""
        columns = [self._column(position) for position in range(len(self._parameters))]
        reached = [column for column in columns if column]
        if not reached:
            return Update([None] * len(columns), None, None)
        gramian = torch.stack([gramian_of(column) for column in reached]).sum(0).cpu()
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
