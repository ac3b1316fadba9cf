"""Linear layers on vectors and sequences, and embeddings: linear layers on numbers of rows."""

import torch
from torch import Tensor
from typing_extensions import override

from gradsurgery.gradients.layers.layer_call import (
    PIECE,
    Gram,
    LayerCall,
    Parameters,
    gram_in_spans,
    inner_products,
    positions,
    scaled,
    wide,
)
from gradsurgery.rules.gramian import full_precision


class LinearCall(LayerCall):
    """y = x Wᵀ + b: sample i's gradients are Σ_s b_is a_isᵀ and Σ_s b_is over its positions s."""

    @override
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        outer = positions(gradient, samples)[:, :, span]
        if role == "bias":
            return outer.sum(1)
        return torch.bmm(outer.transpose(1, 2), positions(self.input, samples).to(outer.dtype))

    @override
    def gram(self, role: str, gradient: Tensor, samples: int) -> Gram:
        if role == "bias":
            return super().gram(role, gradient, samples)
        return factored_gram(positions(self.input, samples), positions(gradient, samples))


def factored_gram(inner: Tensor, outer: Tensor) -> Gram:
    """The inner products of Σ_s b_is a_isᵀ, from a: [samples, positions, in] and b likewise.

    G_ij = Σ_st (a_is·a_jt)(b_is·b_jt) takes N²S²(in + out) multiplications, materialising the
    gradients N·S·in·out and comparing them N²·in·out.
    """
    samples, count, fan_in = inner.shape
    fan_out = outer.shape[2]
    if samples * count**2 * (fan_in + fan_out) > (count + samples) * fan_in * fan_out:
        return gram_in_spans(
            torch.Size([fan_out, fan_in]),
            samples,
            lambda span: torch.bmm(outer[:, :, span].transpose(1, 2), inner.to(outer.dtype)),
        )
    if count == 1:
        return inner_products(inner) * inner_products(outer)
    # Blocks of samples against all: [block · positions, samples · positions]
    block = max(PIECE // (samples * count**2), 1)
    (inner, inner_powers), (outer, outer_powers) = scaled(inner), scaled(outer)
    powers = inner_powers * outer_powers
    flat_inner, flat_outer = inner.flatten(0, 1), outer.flatten(0, 1)
    parts = []
    with full_precision():
        for i, o in zip(inner.split(block), outer.split(block), strict=True):
            products = i.flatten(0, 1) @ flat_inner.T
            products *= o.flatten(0, 1) @ flat_outer.T
            by_pair = products.unflatten(1, (samples, count)).unflatten(0, (-1, count))
            parts.append(by_pair.sum((1, 3), dtype=torch.float64))
    return torch.cat(parts) * powers[:, None] * powers


class EmbeddingCall(LayerCall):
    """y_s = W[x_s]: sample i's gradient of row r is the sum of b_is where x_is = r."""

    def __init__(self, inputs: Tensor, parameters: Parameters, padding: int | None) -> None:
        super().__init__(inputs, parameters)
        self._padding = padding

    @override
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        gradient = self._without_padding(gradient)
        return _summed(gradient, samples, len(self.parameters[role]), self.input)[:, span]

    @override
    def gram(self, role: str, gradient: Tensor, samples: int) -> Gram:
        """Over the rows that any sample picks."""
        used, numbers = self.input.unique(return_inverse=True)
        block = max(PIECE // (samples * len(used)), 1)
        columns = self._without_padding(gradient).split(block, -1)
        parts = [inner_products(_summed(some, samples, len(used), numbers)) for some in columns]
        return torch.stack(parts).sum(0)

    def _without_padding(self, gradient: Tensor) -> Tensor:
        gradient = gradient.to(wide(gradient.dtype))
        if self._padding is None:
            return gradient
        return gradient.masked_fill((self.input == self._padding)[..., None], 0.0)


def _summed(gradient: Tensor, samples: int, length: int, numbers: Tensor) -> Tensor:
    """[samples, length, width]: the sum of each sample's gradients by number."""
    offsets = torch.arange(samples, device=numbers.device) * length
    places = (numbers.reshape(samples, -1) + offsets[:, None]).flatten()
    sums = gradient.new_zeros(samples * length, gradient.shape[-1])
    sums.index_add_(0, places, gradient.reshape(-1, gradient.shape[-1]))
    return sums.view(samples, length, -1)
