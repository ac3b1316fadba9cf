"""Which functions of torch use parameters in a way whose per-sample gradients are known."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from gradsurgery.gradients.convolution import ConvolutionUse
from gradsurgery.gradients.embedding import EmbeddingUse
from gradsurgery.gradients.linear import LinearUse
from gradsurgery.gradients.normalization import NormalizationUse
from gradsurgery.gradients.use import Parameters, Use
from gradsurgery.gradients.weight_gradient import Geometry

Call = Mapping[str, Any]


def captured(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    wanted: Callable[[object], bool],
) -> Use | None:
    """The use that a call makes of wanted parameters, None where it makes none that is known."""
    known = _FUNCTIONS.get(function)
    if known is None:
        return None
    names, build = known
    call = {**dict(zip(names, args, strict=False)), **kwargs}
    parameters = {role: call[role] for role in ("weight", "bias") if wanted(call.get(role))}
    return build(call, parameters) if parameters else None


def _linear(call: Call, parameters: Parameters) -> Use:
    return LinearUse(call["input"], parameters)


def _convolution(call: Call, parameters: Parameters) -> Use | None:
    inputs, weight = call["input"], call["weight"]
    kernel = weight.shape[2:]
    if inputs.ndim != weight.ndim:
        return None  # one sample without a dimension for samples
    dilation = _each(call.get("dilation", 1), len(kernel))
    padding = call.get("padding", 0)
    uneven: list[int] = []
    if padding == "same":
        # one more behind where as much before as behind is not possible
        fills = [apart * (size - 1) for apart, size in zip(dilation, kernel, strict=True)]
        padding = [fill // 2 for fill in fills]
        if any(fill % 2 for fill in fills):
            uneven = [part for fill in reversed(fills) for part in (fill // 2, fill - fill // 2)]
            padding = 0
    elif padding == "valid":
        padding = 0
    geometry = Geometry(
        _each(call.get("stride", 1), len(kernel)),
        _each(padding, len(kernel)),
        dilation,
        call.get("groups", 1),
    )
    return ConvolutionUse(inputs, parameters, weight, geometry, uneven)


def _layer_norm(call: Call, parameters: Parameters) -> Use:
    inputs, shape, eps = call["input"], call["normalized_shape"], call.get("eps", 1e-5)
    return NormalizationUse(
        inputs,
        parameters,
        lambda rows: functional.layer_norm(rows, shape, eps=eps),
        inputs.ndim - len(shape),
    )


def _group_norm(call: Call, parameters: Parameters) -> Use:
    groups, eps = call["num_groups"], call.get("eps", 1e-5)
    return NormalizationUse(
        call["input"], parameters, lambda rows: functional.group_norm(rows, groups, eps=eps), 1
    )


def _batch_norm(call: Call, parameters: Parameters) -> Use:
    of_batch, eps = call.get("training", False), call.get("eps", 1e-5)
    mean, variance = (None, None) if of_batch else (call["running_mean"], call["running_var"])
    return NormalizationUse(
        call["input"],
        parameters,
        lambda rows: functional.batch_norm(rows, mean, variance, training=of_batch, eps=eps),
        1,
        of_batch=of_batch,
    )


def _embedding(call: Call, parameters: Parameters) -> Use | None:
    changed = ("max_norm", "scale_grad_by_freq", "sparse")
    if any(call.get(option) for option in changed):
        return None
    return EmbeddingUse(call["input"], parameters, _padding_row(call))


def _padding_row(call: Call) -> int | None:
    number = call.get("padding_idx")
    if number is None or number >= 0:
        return number
    return int(number + len(call["weight"]))


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_FUNCTIONS: dict[
    Callable[..., Any],
    tuple[tuple[str, ...], Callable[[Call, Parameters], Use | None]],
] = {
    functional.linear: (("input", "weight", "bias"), _linear),
    torch.conv1d: (_CONVOLUTION, _convolution),
    torch.conv2d: (_CONVOLUTION, _convolution),
    torch.conv3d: (_CONVOLUTION, _convolution),
    functional.layer_norm: (("input", "normalized_shape", "weight", "bias", "eps"), _layer_norm),
    functional.group_norm: (("input", "num_groups", "weight", "bias", "eps"), _group_norm),
    functional.batch_norm: (
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _batch_norm,
    ),
    functional.embedding: (
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        _embedding,
    ),
}
