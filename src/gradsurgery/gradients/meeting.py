"""Where a parameter, perhaps in another shape, meets the samples: added, multiplied, beside."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.gradients.broadcast import BroadcastUse

_VIEWS = {
    getattr(owner, name)
    for name in (
        *("reshape", "view", "view_as", "expand", "expand_as", "unsqueeze", "squeeze", "permute"),
        *("transpose", "flatten", "unflatten", "contiguous", "clone", "repeat", "to", "float"),
        *("type_as", "movedim", "__getitem__"),
    )
    for owner in (torch.Tensor, torch)
    if hasattr(owner, name)
}
_ELEMENTWISE = {
    getattr(owner, name)
    for name in (
        *("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__"),
        *("mul", "mul_", "__mul__", "__rmul__", "__imul__", "__isub__", "multiply", "subtract"),
    )
    for owner in (torch.Tensor, torch)
    if hasattr(owner, name)
}
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


def meeting(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], views: Views
) -> BroadcastUse | None:
    """The use of the one view among the arguments, if it meets a tensor that is none."""
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
    return BroadcastUse(other, {"parameter": origin}, view)


def _is_in_place(function: Callable[..., Any]) -> bool:
    name = function.__name__
    return name.startswith("__i") or (name.endswith("_") and not name.startswith("__"))


def _concatenation(
    args: Sequence[Any], kwargs: Mapping[str, Any], views: Views
) -> BroadcastUse | None:
    tensors = args[0] if args else kwargs.get("tensors", ())
    dimension = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    found = [(views.origin(tensor), tensor) for tensor in tensors]
    ours = [(origin, view) for origin, view in found if origin is not None]
    others = [tensor for origin, tensor in found if origin is None]
    if len(ours) != 1 or not others or not others[0].ndim or dimension in (0, -others[0].ndim):
        return None
    ((origin, view),) = ours
    return BroadcastUse(others[0], {"parameter": origin}, view)
