"""Convolutions of any number of dimensions."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from gradsurgery.gradients.layers.layer_call import PIECE, LayerCall, Parameters, by_sample

FEW_POSITIONS = 256
"""Up to here patches laid out in memory beat a convolution with groups per sample.

Without them AlexNet's Gram takes 10 % longer and ResNet-18's 20 % (benchmarks/gradient_gram.py).
"""


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
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        outer = by_sample(gradient, samples)
        if role == "bias":
            return outer[:, :, span].sum((1, *range(3, outer.ndim)))
        inputs = functional.pad(self.input, self._around) if self._around else self.input
        inner, outer = by_sample(inputs, samples).to(outer.dtype), outer[:, :, span]
        if self._geometry.groups > 1:
            first, last = span.start // self.step, -(-span.stop // self.step)
            inner = inner[:, :, first * self._channels : last * self._channels]
        elif inner.shape[1] == 1 and len(self._kernel) == 2 and self._unfolds(outer):
            return self._unfolded_rows(inner[:, 0], outer[:, 0])
        return self._grouped_rows(inner, outer)

    def _unfolds(self, outer: Tensor) -> bool:
        # libraries for accelerators have no fast way for one group a sample
        return outer[0, 0, 0].numel() <= FEW_POSITIONS or outer.device.type != "cpu"

    def _unfolded_rows(self, inner: Tensor, outer: Tensor) -> Tensor:
        fan_in = self._channels * prod(self._kernel)
        block = max(PIECE // (fan_in * outer[0, 0].numel()), 1)
        rows = outer.new_empty(len(outer), outer.shape[1], fan_in)
        blocks = zip(rows.split(block), inner.split(block), outer.split(block), strict=True)
        stride, padding, dilation, _ = self._geometry
        for into, i, o in blocks:
            patches = functional.unfold(i, self._kernel, dilation, padding, stride)
            torch.bmm(o.flatten(2), patches.transpose(1, 2), out=into)
        return rows.view(*rows.shape[:2], -1, *self._kernel)

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
