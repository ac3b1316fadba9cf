"""Gradients of a convolution's weight: of a batch, and of every sample by itself."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Geometry(NamedTuple):
    """What a convolution has beside its weight, a number per dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def weight_gradient(inner: Tensor, outer: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The weight's gradient, summed over the batch.

    inner: the input, [batch, in, …]; outer: the output's gradient, [batch, out, …].
    weight: only its shape matters.
    """
    stride, padding, dilation, groups = geometry
    zeros, mask = [0] * len(stride), [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        *(outer, inner, weight, None, stride, padding, dilation, False, zeros, groups, mask)
    )[1]
    return found


def grouped_rows(
    inner: Tensor, outer: Tensor, kernel: Sequence[int], geometry: Geometry, channels: int
) -> Tensor:
    """The weight's gradients per sample, as those of one convolution with groups per sample.

    inner: [samples, rows, in, …]; outer: [samples, rows, out, …]; channels: inputs of a group.
    """
    samples, filters = len(outer), outer.shape[2]
    groups = samples * (inner.shape[2] // channels)
    inner = inner.transpose(0, 1).flatten(1, 2).contiguous()
    outer = outer.transpose(0, 1).flatten(1, 2).contiguous()
    weight = inner.new_empty(1).expand(samples * filters, channels, *kernel)
    found = weight_gradient(inner, outer, weight, geometry._replace(groups=groups))
    return found.view(samples, filters, channels, *kernel)


def gathered_rows(
    inner: Tensor, outer: Tensor, kernel: Sequence[int], geometry: Geometry
) -> Tensor:
    """The same for a strided convolution of few channels, as a dense one of many: faster.

    What lies a stride apart goes into one channel; the kernel is filled up to a multiple of it.
    """
    stride, padding, _, _ = geometry
    small = [-(-size // apart) for size, apart in zip(kernel, stride, strict=True)]
    fill: list[int] = []
    for at, (size, apart, before) in enumerate(zip(small, stride, padding, strict=True)):
        needed = (outer.shape[3 + at] + size - 1) * apart
        fill = [before, needed - inner.shape[3 + at] - before, *fill]
    inner = functional.pad(inner, fill)
    for at, apart in enumerate(stride):  # a place inside a stride becomes a channel
        inner = inner.unflatten(3 + at, (-1, apart)).movedim(4 + at, 3).flatten(2, 3)
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    rows = grouped_rows(inner, outer, small, Geometry(ones, zeros, ones, 1), inner.shape[2])
    for at in reversed(range(len(kernel))):
        rows = rows.unflatten(2, (-1, stride[at])).movedim(3, 4 + at).flatten(3 + at, 4 + at)
        rows = rows.narrow(3 + at, 0, kernel[at])
    return rows
