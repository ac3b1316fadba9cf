"""Parameters that scale, shift or stand beside what they meet: normalisations, scales, tokens."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from typing_extensions import override

from gradsurgery.gradients.layers import (
    Arguments,
    KnownCalls,
    LayerCall,
    Parameters,
    by_sample,
    wide,
)

_MANY = 4096


class NormalizationCall(LayerCall):
    """y = x̂ · γ + β: sample i's gradients are Σ b_i x̂_i and Σ b_i over what γ is repeated along.

    normalized: x̂ of the input, computed anew so that it need not be kept.
    first: the dimension at which γ's own begin.
    """

    def __init__(
        self,
        inputs: Tensor,
        parameters: Parameters,
        normalized: Callable[[Tensor], Tensor],
        first: int,
    ) -> None:
        super().__init__(inputs, parameters)
        self._normalized = normalized
        self._first = first

    @override
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        products = gradient.to(wide(gradient.dtype))
        if role == "weight":
            products = products * self._normalized(self.input).to(products.dtype)
        # the dimensions that γ is repeated along, after one for the samples
        own = range(self._first, self._first + self.parameters[role].ndim)
        repeated = [at + 1 for at in range(self._input.ndim) if at not in own]
        return by_sample(products, samples).sum(repeated)[:, span]


class BatchNormCall(LayerCall):
    """Batch normalisation by running statistics: as above, both sums in one pass of torch's own."""

    def __init__(
        self, inputs: Tensor, parameters: Parameters, mean: Tensor, variance: Tensor, eps: float
    ) -> None:
        super().__init__(inputs, parameters)
        self._statistics = mean, variance
        self._eps = eps
        self._found: dict[str, Tensor] = {}

    @override
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        found = self._found.pop(role, None)
        if found is None:
            self._found = self._sums(gradient, samples)
            found = self._found.pop(role)
        return found[:, span]

    def _sums(self, gradient: Tensor, samples: int) -> dict[str, Tensor]:
        """By role, of each sample. Every channel of every row is a channel of its own to torch."""
        rows, channels, *sizes = gradient.shape
        # sums over many positions are more exact in parts
        parts = sizes[0] if prod(sizes) > _MANY else 1
        apart = (1, rows * channels * parts, -1)
        outer = gradient.to(wide(gradient.dtype)).reshape(apart)
        mean, variance = (
            one.to(outer.dtype).repeat_interleave(parts).repeat(rows) for one in self._statistics
        )
        inputs, unsaved = self.input.to(outer.dtype).reshape(apart), outer.new_empty(0)
        # CUDA asks for weights, of whatever values, and a pass's statistics, of any length
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            *(outer, inputs, mean, mean, variance, unsaved, unsaved),
            *(False, self._eps, [False, True, True]),
        )
        by_channel = [one.view(samples, -1, channels, parts).sum((1, 3)) for one in sums]
        return dict(zip(("weight", "bias"), by_channel, strict=True))


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


NORMALIZATIONS: KnownCalls = {
    functional.layer_norm: (("input", "normalized_shape", "weight", "bias", "eps"), _layer_norm),
    functional.group_norm: (("input", "num_groups", "weight", "bias", "eps"), _group_norm),
    functional.batch_norm: (
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _batch_norm,
    ),
}


class BroadcastCall(LayerCall):
    """y = x ∘ v(p) for an elementwise ∘, or [v(p), x], with v a change of shape.

    A stand-in with one v(p) per row takes v(p)'s place; its gradient is that of each row.

    view: v(p), either repeated along the rows or with a row of its own for each.
    """

    def __init__(self, inputs: Tensor, parameters: Parameters, view: Tensor) -> None:
        super().__init__(inputs, parameters)
        self.view = view
        # of v as it is now, whatever is written into v(p) later
        self._edge = None if view.grad_fn is None else get_gradient_edge(view)
        missing = inputs.ndim - view.ndim
        self._repeated = missing > 0 or view.shape[0] == 1
        shape = [1] * missing + list(view.shape)
        self.shape = [inputs.shape[0], *shape[1:]]

    @override
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        """The transposed derivative of v applied to each sample's rows."""
        gradient = gradient.to(wide(gradient.dtype))
        each = len(gradient) // samples
        found = torch.stack(
            [self._of(role, gradient, slice(i * each, (i + 1) * each)) for i in range(samples)]
        )
        return found[:, span] if found.ndim > 1 else found

    def _of(self, role: str, gradient: Tensor, part: slice) -> Tensor:
        if self._repeated:
            cotangent = gradient[part].sum(0).reshape(self.view.shape)
        else:
            cotangent = torch.zeros_like(gradient)
            cotangent[part] = gradient[part]
        if self._edge is None:
            return cotangent
        (found,) = torch.autograd.grad(
            self._edge, self.parameters[role], cotangent.to(self.view.dtype), retain_graph=True
        )
        return found


def functions_named(*names: str) -> set[Callable[..., Any]]:
    """As methods of tensors, and as functions of torch where there are such."""
    owners = (torch.Tensor, torch)
    found = {getattr(owner, name, None) for name in names for owner in owners}
    return {one for one in found if callable(one)}  # torch.float is a type of numbers


_VIEWS = functions_named(
    *("reshape", "view", "view_as", "expand", "expand_as", "unsqueeze", "squeeze", "permute"),
    *("transpose", "flatten", "unflatten", "contiguous", "clone", "repeat", "to", "float"),
    *("type_as", "movedim", "__getitem__"),
)
_ELEMENTWISE = functions_named(
    *("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__"),
    *("mul", "mul_", "__mul__", "__rmul__", "__imul__", "__isub__", "multiply", "subtract"),
)
_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}


class Views:
    """Parameters, and what came of them by a change of shape alone.

    A view that was written into afterwards may hold more than its parameter, and is none any more.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._origins = {id(p): (p, p, p._version) for p in parameters}

    def origin(self, value: object) -> Tensor | None:
        """The parameter that `value` is a view of, None for anything else."""
        found = self._origins.get(id(value))
        if found is None or found[0]._version != found[2]:
            return None
        view, origin, _ = found
        if torch.is_grad_enabled() and view is not origin and view.grad_fn is None:
            return None  # made where no gradient was wanted
        return origin

    def note(self, function: Callable[..., Any], args: Sequence[Any], result: object) -> None:
        """Remember the result of a call if it changed a view's shape and nothing else."""
        if function in _VIEWS and args and isinstance(result, Tensor):
            origin = self.origin(args[0])
            if origin is not None and result is not args[0]:
                # the tensor is kept, so that its id stays its own
                self._origins[id(result)] = (result, origin, result._version)


def broadcast_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], views: Views
) -> BroadcastCall | None:
    """The call in which the one view among the arguments meets a tensor that is none."""
    if function in _CONCATENATIONS:
        return _concatenation(args, kwargs, views)
    if function not in _ELEMENTWISE or len(args) != 2:
        return None
    if not all(isinstance(value, Tensor) for value in args):
        return None
    origins = [views.origin(value) for value in args]
    at = 0 if origins[0] is not None else 1
    origin, view, other = origins[at], args[at], args[1 - at]
    if origin is None or origins[1 - at] is not None or (at == 0 and _is_in_place(function)):
        return None
    fits = view.ndim < other.ndim or view.shape[:1] in ((1,), other.shape[:1])
    if not fits or not 0 < other.ndim >= view.ndim:
        return None
    return BroadcastCall(other, {"parameter": origin}, view)


def _is_in_place(function: Callable[..., Any]) -> bool:
    name = function.__name__
    return name.startswith("__i") or (name.endswith("_") and not name.startswith("__"))


def _concatenation(
    args: Sequence[Any], kwargs: Mapping[str, Any], views: Views
) -> BroadcastCall | None:
    tensors = args[0] if args else kwargs.get("tensors", ())
    dimension = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    found = [(views.origin(tensor), tensor) for tensor in tensors]
    ours = [(origin, view) for origin, view in found if origin is not None]
    others = [tensor for origin, tensor in found if origin is None]
    if len(ours) != 1 or not others or not others[0].ndim or dimension in (0, -others[0].ndim):
        return None
    ((origin, view),) = ours
    return BroadcastCall(others[0], {"parameter": origin}, view)
