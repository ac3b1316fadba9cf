"""Convolutions of any number of dimensions."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from gradsurgery.gradients.layers.layer_call import (
    PIECE,
    Gram,
    LayerCall,
    Parameters,
    by_sample,
    positions,
)
from gradsurgery.gradients.layers.linear import factored_gram

FEW_POSITIONS = 200
"""Up to here patches laid out in memory beat a convolution with groups per sample.

Without them AlexNet's Gram takes 10 % longer and ResNet-18's 20 % (benchmarks/gradient_gram.py).
"""
_MOST_PATCHES = 8 * PIECE


class Geometry(NamedTuple):
    """What a convolution has beside its weight, a number per dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class ConvolutionCall(LayerCall):
    """y = x ∗ W + b with stride, padding, dilation and groups.

    Sample i's gradients are the sums over its positions of patch and output gradient, Σ_s b_is
    a_isᵀ, and Σ_s b_is.

    around: padding put around the input first, as `torch.nn.functional.pad` takes it.
    """

    def __init__(
        self,
        inputs: Tensor,
        parameters: Parameters,
        weight: Tensor,
        geometry: Geometry,
        around: list[int],
    ) -> None:
        super().__init__(inputs, parameters)
        self._channels = weight.shape[1]
        self._kernel = tuple(weight.shape[2:])
        self._geometry = geometry
        self._around = around
        self.step = len(weight) // geometry.groups if geometry.groups > 1 else 1

    @override
    def gram(self, role: str, gradient: Tensor, samples: int) -> Gram:
        if role == "bias" or not self._unfolds(gradient):
            return super().gram(role, gradient, samples)
        outer = gradient.flatten(2).transpose(1, 2)
        return factored_gram(positions(self._patches(), samples), positions(outer, samples))

    def _unfolds(self, gradient: Tensor) -> bool:
        """Whether to compute it as a linear layer on patches, laid out in memory."""
        count = gradient[0, 0].numel()
        size = len(gradient) * count * self._channels * prod(self._kernel)
        if self._geometry.groups > 1 or len(self._kernel) != 2:
            return False
        if gradient.device.type != "cpu":  # whose libraries have no fast way for one group a sample
            return size <= 16 * _MOST_PATCHES
        return size <= _MOST_PATCHES and (count <= FEW_POSITIONS or self._is_pointwise())

    def _is_pointwise(self) -> bool:
        stride, padding, _, _ = self._geometry
        return {*self._kernel, *stride} == {1} and not any((*padding, *self._around))

    def _patches(self) -> Tensor:
        """[rows, positions, fan-in]."""
        if self._is_pointwise():
            return self.input.flatten(2).transpose(1, 2)
        inputs = functional.pad(self.input, self._around) if self._around else self.input
        stride, padding, dilation, _ = self._geometry
        patches = functional.unfold(inputs, self._kernel, dilation, padding, stride)
        return patches.transpose(1, 2)

    @override
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        outer = by_sample(gradient, samples)
        if role == "bias":
            return outer[:, :, span].sum((1, *range(3, outer.ndim)))
        inputs = functional.pad(self.input, self._around) if self._around else self.input
        inner, outer = by_sample(inputs, samples).to(outer.dtype), outer[:, :, span]
        if self._geometry.groups > 1:
            first, last = span.start // self.step, -(-span.stop // self.step)
            inner = inner[:, :, first * self._channels : last * self._channels]
        return self._grouped_rows(inner, outer)

    def _grouped_rows(self, inner: Tensor, outer: Tensor) -> Tensor:
        """As the weight's gradient of one convolution with groups per sample.

        inner: [samples, rows, in, …]; outer: [samples, rows, out, …].
        """
        samples, filters = len(outer), outer.shape[2]
        stride, padding, dilation, _ = self._geometry
        groups = samples * (inner.shape[2] // self._channels)
        inner = inner.transpose(0, 1).flatten(1, 2).contiguous()
        outer = outer.transpose(0, 1).flatten(1, 2).contiguous()
        weight = inner.new_empty(1).expand(samples * filters, self._channels, *self._kernel)
        zeros, mask = [0] * len(stride), [False, True, False]
        found: Tensor = torch.ops.aten.convolution_backward(
            *(outer, inner, weight, None, stride, padding, dilation, False, zeros, groups, mask)
        )[1]
        return found.view(samples, filters, self._channels, *self._kernel)


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Padding "same", as `torch.nn.functional.pad` takes it; an odd one is behind."""
    fills = [apart * (size - 1) for apart, size in zip(dilation, kernel, strict=True)]
    return [part for fill in reversed(fills) for part in (fill // 2, fill - fill // 2)]
