"""Linear layers, on vectors and on sequences."""

import torch
from torch import Tensor

from gradsurgery.gradients.products import PIECE, Gram, gram_in_spans, inner_products
from gradsurgery.gradients.use import Use, positions
from gradsurgery.rules.gramian import full_precision


class LinearUse(Use):
    """y = x Wᵀ + b: sample i's gradient of W is Σ_s b_is a_isᵀ over its positions s."""

    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        """Σ_s b_is a_isᵀ, or Σ_s b_is."""
        outer = positions(gradient, samples)[:, :, span]
        if role == "bias":
            return outer.sum(1)
        return torch.bmm(outer.transpose(1, 2), positions(self.input, samples).to(outer.dtype))

    def total(self, role: str, gradient: Tensor, part: slice) -> Tensor:
        """The same over all rows of the part."""
        outer = gradient[part].flatten(0, -2)
        if role == "bias":
            return outer.sum(0)
        return outer.T @ self.input[part].flatten(0, -2).to(outer.dtype)

    def gram(self, role: str, gradient: Tensor, samples: int) -> Gram:
        """The inner-product form where there are few positions."""
        if role == "bias":
            return super().gram(role, gradient, samples)
        outer, inner = positions(gradient, samples), positions(self.input, samples)
        return factored_gram(inner, outer)


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
    flat_inner, flat_outer = inner.flatten(0, 1), outer.flatten(0, 1)
    parts = []
    with full_precision():
        for i, o in zip(inner.split(block), outer.split(block), strict=True):
            products = i.flatten(0, 1) @ flat_inner.T
            products *= o.flatten(0, 1) @ flat_outer.T
            by_pair = products.unflatten(1, (samples, count)).unflatten(0, (-1, count))
            parts.append(by_pair.sum((1, 3), dtype=torch.float64))
    return torch.cat(parts)
