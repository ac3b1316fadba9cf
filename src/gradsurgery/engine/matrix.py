"""The gradients of all other rules: kept as the rows of one matrix."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.engine.collector import HookedCollector, Update
from gradsurgery.errors import ArgumentError
from gradsurgery.rules.base import Rule

# How many domains come is known at the end. Most sets have up to four source domains; a row that
# stays unused costs address space and no memory on a CPU.
_FIRST_ROWS = 4


class MatrixCollector(HookedCollector):
    """For rules that are called on a matrix: writes every gradient into its place in a row.

    With D domains and P components the memory is D × P and the largest parameter's gradient, D
    taken as 4 below that; more domains double the matrix, which then is there twice for a moment.
    """

    def __init__(self, rule: Rule, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rule = rule
        if len(devices := {parameter.device for parameter in parameters}) > 1:
            raise ArgumentError(
                f"the rule {rule.name} takes the gradients as one matrix, found parameters on "
                f"{', '.join(sorted(map(str, devices)))}; put the model on one device"
            )
        bounds = torch.tensor([0, *(parameter.numel() for parameter in parameters)]).cumsum(0)
        self._bounds: list[int] = bounds.tolist()
        self._reached: set[int] = set()
        dtype = parameters[0].dtype
        for parameter in parameters:
            dtype = torch.promote_types(dtype, parameter.dtype)
        self._matrix = torch.empty(
            _FIRST_ROWS, self._bounds[-1], dtype=dtype, device=parameters[0].device
        )

    def begin_domain(self, *, folds_at_once: bool) -> None:
        """Make room for one more row."""
        super().begin_domain(folds_at_once=folds_at_once)
        if self._domain == len(self._matrix):
            grown = self._matrix.new_empty(2 * len(self._matrix), self._bounds[-1])
            grown[: self._domain] = self._matrix
            self._matrix = grown

    def finish(self, *, poison: bool) -> Update:
        """The rule's update, split into the parameters."""
        gradients: list[Tensor | None] = [None] * len(self._parameters)
        if not self._reached:
            return Update(gradients, None, None)
        reached = sorted(self._reached)
        update = self._update([self._span(position) for position in reached])
        parts = update.split([self._parameters[position].numel() for position in reached])
        for position, part in zip(reached, parts, strict=True):
            flat = part.to(self._parameters[position].dtype)
            gradients[position] = self._shaped(flat, position, poison=poison)
        return Update(gradients, None, None)

    def _receive(self, position: int, gradient: Float[Tensor, " params"] | None) -> None:
        place = self._matrix[self._domain, self._span(position)]
        if gradient is None:
            place.zero_()
        else:
            place.copy_(gradient)
            self._reached.add(position)

    def _span(self, position: int) -> slice:
        return slice(self._bounds[position], self._bounds[position + 1])

    def _update(self, spans: list[slice]) -> Float[Tensor, " params"]:
        matrix = self._matrix[: self._domain + 1]
        if len(spans) < len(self._parameters):
            # what no domain reaches does not take part
            matrix = torch.cat([matrix[:, span] for span in spans], 1)
        if self.first_non_finite() is not None:
            return matrix[0]  # only where a loss scaler is there to skip the step
        update = self._rule(matrix)
        if update.shape != matrix.shape[1:]:
            raise ArgumentError(
                f"the rule {self._rule.name} gives one component per column of the gradients, "
                f"expected shape {list(matrix.shape[1:])}, found {list(update.shape)}"
            )
        return update
