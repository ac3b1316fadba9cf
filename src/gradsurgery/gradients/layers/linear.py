"""Linear layers on vectors, sequences, patches (convolutions) and numbers of rows (embeddings)."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from gradsurgery.gradients.layers import (
    PIECE,
    Arguments,
    Gram,
    KnownCalls,
    LayerCall,
    Parameters,
    by_sample,
    gram_in_spans,
    inner_products,
    positions,
    scaled,
    wide,
)
from gradsurgery.rules.gramian import full_precision

FEW_POSITIONS = 200
"""Up to here patches laid out in memory beat a convolution with groups per sample.

Without them AlexNet's Gram takes 10 % longer and ResNet-18's 20 % (benchmarks/gradient_gram.py).
"""
_MOST_PATCHES = 8 * PIECE


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
    """

    def __init__(
        self, inputs: Tensor, parameters: Parameters, weight: Tensor, geometry: Geometry
    ) -> None:
        super().__init__(inputs, parameters)
        self._channels = weight.shape[1]
        self._kernel = tuple(weight.shape[2:])
        self._geometry = geometry
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
        return {*self._kernel, *stride} == {1} and not any(padding)

    def _patches(self) -> Tensor:
        """[rows, positions, fan-in]."""
        if self._is_pointwise():
            return self.input.flatten(2).transpose(1, 2)
        stride, padding, dilation, _ = self._geometry
        patches = functional.unfold(self.input, self._kernel, dilation, padding, stride)
        return patches.transpose(1, 2)

    @override
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        outer = by_sample(gradient, samples)
        if role == "bias":
            return outer[:, :, span].sum((1, *range(3, outer.ndim)))
        inner, outer = by_sample(self.input, samples).to(outer.dtype), outer[:, :, span]
        if self._geometry.groups > 1:
            first, last = span.start // self.step, -(-span.stop // self.step)
            inner = inner[:, :, first * self._channels : last * self._channels]
        # as the weight's gradient of one convolution with groups per sample
        filters = outer.shape[2]
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


def _linear(call: Arguments, parameters: Parameters) -> LayerCall | None:
    # one dimension is one sample without a dimension for samples
    return LinearCall(call["input"], parameters) if call["input"].ndim > 1 else None


def _convolution(call: Arguments, parameters: Parameters) -> LayerCall | None:
    inputs, weight, padding = call["input"], call["weight"], call.get("padding", 0)
    kernel = weight.shape[2:]
    if inputs.ndim != weight.ndim:
        return None  # one sample without a dimension for samples
    stride, dilation = (_each(call.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    if padding == "same":  # an odd one is behind
        fills = [apart * (size - 1) for apart, size in zip(dilation, kernel, strict=True)]
        around = [part for fill in reversed(fills) for part in (fill // 2, fill - fill // 2)]
        inputs = functional.pad(inputs, around)
    around_all = (0,) * len(kernel) if isinstance(padding, str) else _each(padding, len(kernel))
    geometry = Geometry(stride, around_all, dilation, call.get("groups", 1))
    return ConvolutionCall(inputs, parameters, weight, geometry)


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _embedding(call: Arguments, parameters: Parameters) -> LayerCall | None:
    if call.get("max_norm") is not None or call.get("scale_grad_by_freq"):
        return None
    padding = call.get("padding_idx")
    if padding is not None and padding < 0:
        padding += len(call["weight"])
    return EmbeddingCall(call["input"], parameters, padding)


_CONVOLUTION = (
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    _convolution,
)
LINEAR: KnownCalls = {
    functional.linear: (("input", "weight", "bias"), _linear),
    torch.conv1d: _CONVOLUTION,
    torch.conv2d: _CONVOLUTION,
    torch.conv3d: _CONVOLUTION,
    functional.embedding: (
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        _embedding,
    ),
}
