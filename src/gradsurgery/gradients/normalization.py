"""Layers that normalise and then scale and shift: layer, group and batch normalisation."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from gradsurgery.gradients.products import wide
from gradsurgery.gradients.use import Parameters, Use, by_sample


class NormalizationUse(Use):
    """y = x̂ · γ + β: sample i's gradients are Σ b_i x̂_i and Σ b_i over what γ is repeated along.

    normalized: x̂ of any rows of the input, computed anew so that it need not be kept.
    first: the dimension at which γ's own begin.
    of_batch: whether x̂ depends on the other rows.
    """

    def __init__(
        self,
        inputs: Tensor,
        parameters: Parameters,
        normalized: Callable[[Tensor], Tensor],
        first: int,
        *,
        of_batch: bool = False,
    ) -> None:
        super().__init__(inputs, parameters)
        self._of_batch = of_batch
        self._normalized = normalized
        self._first = first

    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        """The sums per sample."""
        products = by_sample(self._products(role, gradient, self.input), samples)
        return products.sum(self._repeated(role, 1))[:, span]

    def total(self, role: str, gradient: Tensor, part: slice) -> Tensor:
        """The sums over the part."""
        if self._of_batch:
            return next(self.totals(role, gradient, [part]))
        products = self._products(role, gradient[part], self.input[part])
        return products.sum(self._repeated(role, 0))

    def totals(self, role: str, gradient: Tensor, parts: Sequence[slice]) -> Iterator[Tensor]:
        """The sums over each part."""
        if not self._of_batch:
            yield from super().totals(role, gradient, parts)
            return
        products = self._products(role, gradient, self.input)
        for part in parts:
            yield products[part].sum(self._repeated(role, 0))

    def _products(self, role: str, gradient: Tensor, inputs: Tensor) -> Tensor:
        gradient = gradient.to(wide(gradient.dtype))
        if role == "bias":
            return gradient
        return gradient * self._normalized(inputs).to(gradient.dtype)

    def _repeated(self, role: str, shift: int) -> list[int]:
        """The dimensions that γ is repeated along; with a dimension for samples, shifted by it."""
        own = range(self._first, self._first + self.parameters[role].ndim)
        return [at + shift for at in range(self._input.ndim) if at not in own]
