"""The calls of torch whose parameters have known per-sample gradients."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from gradsurgery.gradients.layers.convolution import ConvolutionCall, Geometry, same_padding
from gradsurgery.gradients.layers.elementwise import BatchNormCall, NormalizationCall
from gradsurgery.gradients.layers.layer_call import LayerCall, Parameters
from gradsurgery.gradients.layers.linear import EmbeddingCall, LinearCall

Arguments = Mapping[str, Any]


def known_call(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    wanted: Callable[[object], bool],
) -> LayerCall | None:
    """The layer's call that uses wanted parameters, None where it is none that is known."""
    known = _FUNCTIONS.get(function)
    if known is None:
        return None
    names, build = known
    call = {**dict(zip(names, args, strict=False)), **kwargs}
    parameters = {role: call[role] for role in ("weight", "bias") if wanted(call.get(role))}
    return build(call, parameters) if parameters else None


def _linear(call: Arguments, parameters: Parameters) -> LayerCall | None:
    # one dimension is one sample without a dimension for samples
    return LinearCall(call["input"], parameters) if call["input"].ndim > 1 else None


def _convolution(call: Arguments, parameters: Parameters) -> LayerCall | None:
    inputs, weight = call["input"], call["weight"]
    kernel = weight.shape[2:]
    if inputs.ndim != weight.ndim:
        return None  # one sample without a dimension for samples
    dilation = _each(call.get("dilation", 1), len(kernel))
    padding = call.get("padding", 0)
    around = same_padding(kernel, dilation) if padding == "same" else []
    if isinstance(padding, str):
        padding = 0
    geometry = Geometry(
        _each(call.get("stride", 1), len(kernel)),
        _each(padding, len(kernel)),
        dilation,
        call.get("groups", 1),
    )
    return ConvolutionCall(inputs, parameters, weight, geometry, around)


def _layer_norm(call: Arguments, parameters: Parameters) -> LayerCall | None:
    inputs, shape, eps = call["input"], call["normalized_shape"], call.get("eps", 1e-5)
    if inputs.ndim == len(shape):
        return None  # normalised over the samples too
    return NormalizationCall(
        inputs,
        parameters,
        lambda rows: functional.layer_norm(rows, shape, eps=eps),
        inputs.ndim - len(shape),
    )


def _group_norm(call: Arguments, parameters: Parameters) -> LayerCall:
    groups, eps = call["num_groups"], call.get("eps", 1e-5)
    return NormalizationCall(
        call["input"], parameters, lambda rows: functional.group_norm(rows, groups, eps=eps), 1
    )


def _batch_norm(call: Arguments, parameters: Parameters) -> LayerCall | None:
    if call.get("training", False):
        return None  # normalised over the samples
    mean, variance, eps = call["running_mean"], call["running_var"], call.get("eps", 1e-5)
    # as they are now: the layer may be called again after they have changed
    return BatchNormCall(call["input"], parameters, mean.clone(), variance.clone(), eps)


def _embedding(call: Arguments, parameters: Parameters) -> LayerCall | None:
    if call.get("max_norm") is not None or call.get("scale_grad_by_freq"):
        return None
    padding = call.get("padding_idx")
    if padding is not None and padding < 0:
        padding += len(call["weight"])
    return EmbeddingCall(call["input"], parameters, padding)


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_FUNCTIONS: dict[
    Callable[..., Any],
    tuple[tuple[str, ...], Callable[[Arguments, Parameters], LayerCall | None]],
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
