"""Convolutions of any number of dimensions."""

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from gradsurgery.gradients.linear import factored_gram
from gradsurgery.gradients.products import PIECE, Gram, wide
from gradsurgery.gradients.use import Parameters, Use, by_sample
from gradsurgery.gradients.weight_gradient import (
    Geometry,
    gathered_rows,
    grouped_rows,
    weight_gradient,
)

FEW_POSITIONS = 256  # up to here patches laid out in memory beat a convolution per sample
FEW_CHANNELS = 16


class ConvolutionUse(Use):
    """y = x ∗ W + b with stride, padding, dilation and groups.

    uneven: padding put around the input first, as `torch.nn.functional.pad` takes it.
    """

    def __init__(
        self,
        inputs: Tensor,
        parameters: Parameters,
        weight: Tensor,
        geometry: Geometry,
        uneven: list[int],
    ) -> None:
        super().__init__(inputs, parameters)
        self._weight = weight.detach()
        self._kernel = tuple(weight.shape[2:])
        self._geometry = geometry
        self._uneven = uneven
        self.step = len(weight) // geometry.groups if geometry.groups > 1 else 1

    @property
    def input(self) -> Tensor:
        """The input, with the uneven padding around it."""
        inputs = super().input
        return functional.pad(inputs, self._uneven) if self._uneven else inputs

    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        """Σ over the positions of patch and output gradient; Σ_s b_is for the bias."""
        outer = by_sample(gradient, samples)
        if role == "bias":
            return outer[:, :, span].sum((1, *range(3, outer.ndim)))
        inner = by_sample(self.input, samples)
        if self._geometry.groups > 1:
            each = self._weight.shape[1]
            first, last = span.start // self.step, -(-span.stop // self.step)
            inner = inner[:, :, first * each : last * each]
        return self._weight_rows(inner.to(outer.dtype), outer[:, :, span])

    def total(self, role: str, gradient: Tensor, part: slice) -> Tensor:
        """The usual gradient of a part of the batch."""
        outer = gradient[part]
        if role == "bias":
            return outer.sum((0, *range(2, outer.ndim)))
        inner = self.input[part].to(outer.dtype)
        return weight_gradient(inner, outer, self._weight.to(outer.dtype), self._geometry)

    def gram(self, role: str, gradient: Tensor, samples: int) -> Gram:
        """The inner-product form where there are few positions."""
        places = gradient[0, 0].numel()
        fan_in, fan_out = prod(self._weight.shape[1:]), len(self._weight)
        cheap = samples * places**2 * (fan_in + fan_out) < (places + samples) * fan_in * fan_out
        plain = self._geometry.groups == 1 and gradient.ndim == 4 and len(gradient) == samples
        if role == "bias" or not (cheap and plain):
            return super().gram(role, gradient, samples)
        outer = gradient.to(wide(gradient.dtype)).flatten(2)
        patches = self._patches(self.input.to(outer.dtype))
        return factored_gram(patches.transpose(1, 2), outer.transpose(1, 2))

    def _weight_rows(self, inner: Tensor, outer: Tensor) -> Tensor:
        """From [samples, rows, channels, …] of the input and of the output's gradient."""
        if inner.shape[1] == 1 and self._geometry.groups == 1:
            if self._is_pointwise():
                left, right = outer[:, 0].flatten(2), inner[:, 0].flatten(2)
                found = torch.bmm(left, right.transpose(1, 2))
                return found.view(*found.shape, *self._kernel)
            if len(self._kernel) == 2 and self._unfolds(outer):
                return self._unfolded_rows(inner[:, 0], outer[:, 0])
            if self._weight.shape[1] <= FEW_CHANNELS and self._strides_inside():
                return gathered_rows(inner, outer, self._kernel, self._geometry)
        return grouped_rows(inner, outer, self._kernel, self._geometry, self._weight.shape[1])

    def _is_pointwise(self) -> bool:
        stride, padding, _, _ = self._geometry
        return prod(self._kernel) == 1 and set(stride) == {1} and not any(padding)

    def _unfolds(self, outer: Tensor) -> bool:
        # libraries for accelerators have no fast way for one group a sample
        return outer[0, 0, 0].numel() <= FEW_POSITIONS or outer.device.type != "cpu"

    def _unfolded_rows(self, inner: Tensor, outer: Tensor) -> Tensor:
        fan_in = prod(self._weight.shape[1:])
        block = max(PIECE // (fan_in * outer[0, 0].numel()), 1)
        rows = outer.new_empty(len(outer), outer.shape[1], fan_in)
        blocks = zip(rows.split(block), inner.split(block), outer.split(block), strict=True)
        for into, i, o in blocks:
            torch.bmm(o.flatten(2), self._patches(i).transpose(1, 2), out=into)
        return rows.view(*rows.shape[:2], -1, *self._kernel)

    def _patches(self, inner: Tensor) -> Tensor:
        stride, padding, dilation, _ = self._geometry
        return functional.unfold(inner, self._kernel, dilation, padding, stride)

    def _strides_inside(self) -> bool:
        return set(self._geometry.dilation) == {1} and all(
            1 < stride < size
            for stride, size in zip(self._geometry.stride, self._kernel, strict=True)
        )
