"""One call of a layer, and the inner products of its samples' gradients.

A float32 dot product over tens of millions of components is wrong by 1e-3. Here blocks of 1,024
components are multiplied in at least float32, and the blocks are summed in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.rules.gramian import full_precision

BLOCK = 1024
PIECE = 3 * 2**21  # components materialised at a time: 24 MiB of float32, which malloc uses again

Gram = Float[Tensor, "samples samples"]
Parameters = Mapping[str, Tensor]
Arguments = Mapping[str, Any]


class LayerCall(ABC):
    """One call of a layer whose output's first dimension has the samples in order.

    Each row of the output comes from the same row of the input and the parameters alone.

    inputs: what went into the layer, [rows, …]; rows is a multiple of the number of samples, e.g.
        windows or frames, each sample's next to one another.
    parameters: those to find gradients for, by their role: "weight", "bias".
    """

    step: int = 1
    """What spans of the first dimension of a weight are multiples of."""

    def __init__(self, inputs: Tensor, parameters: Parameters) -> None:
        self._input = inputs.detach()
        self._version = inputs._version
        self.parameters = parameters

    @property
    def input(self) -> Tensor:
        """The input, which must still be as it was."""
        if self._input._version != self._version:
            raise RuntimeError(
                f"the input of a layer, of shape {list(self._input.shape)}, was modified in place "
                "after the layer read it, so that its gradient cannot be computed"
            )
        return self._input

    @abstractmethod
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        """The gradient per sample of `span` of the parameter: [samples, span, …].

        gradient: that of the layer's output, [rows, …].
        """

    def gram(self, role: str, gradient: Tensor, samples: int) -> Gram:
        """The inner products of the samples' gradients, by the cheaper of the exact ways."""
        return gram_in_spans(
            self.parameters[role].shape,
            samples,
            lambda span: self.rows(role, gradient, samples, span),
            step=self.step,
        )


def by_sample(tensor: Tensor, samples: int) -> Tensor:
    """[rows, …] as [samples, rows of each, …], in at least float32."""
    apart: Tensor = tensor.to(wide(tensor.dtype)).unflatten(0, (samples, -1))
    return apart


def positions(tensor: Tensor, samples: int) -> Tensor:
    """[rows, …, features] as [samples, positions, features], in at least float32."""
    return by_sample(tensor, samples).flatten(1, -2)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to multiply in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def inner_products(rows: Float[Tensor, "samples ..."]) -> Gram:
    """G_ij = Σ_n rows[i]_n rows[j]_n in float64."""
    flat = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
    flat = flat.to(wide(flat.dtype))
    whole = flat.shape[1] // BLOCK * BLOCK
    blocks = flat[:, :whole].unflatten(1, (-1, BLOCK)).transpose(0, 1)
    with full_precision():
        products = torch.bmm(blocks, blocks.transpose(1, 2)).sum(0, dtype=torch.float64)
    if not products.isfinite().all() or _underflows(products, flat):
        # float32 squares overflow from 1e19 on, and lose digits below 1e-19
        products = flat[:, :whole].double() @ flat[:, :whole].double().T
    tail = flat[:, whole:].double()
    return products + tail @ tail.T


def _underflows(products: Gram, flat: Tensor) -> bool:
    """Whether a row that is not zero has squares near the smallest numbers of float32."""
    small = (products.diagonal() < 1e-25).nonzero().flatten()
    return any(bool(flat[i].any()) for i in small.tolist())


def scaled(rows: Float[Tensor, "samples ..."]) -> tuple[Tensor, Float[Tensor, " samples"]]:
    """The rows, each divided by a power of two so that its largest number is near 1; and those.

    Products of such rows neither overflow nor underflow, and the division loses nothing.
    """
    largest = rows.flatten(1).abs().amax(1)
    power = torch.exp2(torch.where(largest > 0, largest.double().log2().floor(), 0.0))
    shape = (-1, *[1] * (rows.ndim - 1))
    return (rows.double() / power.view(shape)).to(rows.dtype), power


def gram_in_spans(
    shape: torch.Size, samples: int, rows: Callable[[slice], Tensor], *, step: int = 1
) -> Gram:
    """The inner products of per-sample gradients of a parameter of `shape`.

    rows: the per-sample gradients of a span of the parameter's first dimension, [samples, span,
        …]. The spans are multiples of `step` and so short that no more than `PIECE` components
        are there at a time.
    """
    if not shape.numel():
        return torch.zeros(samples, samples, dtype=torch.float64, device="cpu")
    length = shape[0] if shape else 1
    each = samples * max(shape.numel() // max(length, 1), 1)
    span = max(PIECE // each // step, 1) * step
    parts = [
        inner_products(rows(slice(at, min(at + span, length)))) for at in range(0, length, span)
    ]
    return torch.stack(parts).sum(0)


KnownCalls = dict[
    Callable[..., Any],
    tuple[tuple[str, ...], Callable[[Arguments, Parameters], LayerCall | None]],
]
"""By function of torch: the names of its arguments, and what makes a layer's call of them, None
where they are no call whose samples' gradients are known."""
