"""One forward pass in which the calls of layers are seen and tapped.

A tap on a layer's output is the identity, and receives the output's gradient in backward passes.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from typing_extensions import override

from gradsurgery.engine.graph import graph_of, what_is_behind
from gradsurgery.gradients.layers import LayerCall
from gradsurgery.gradients.layers.elementwise import (
    NORMALIZATIONS,
    BroadcastCall,
    Views,
    broadcast_call,
    functions_named,
)
from gradsurgery.gradients.layers.linear import LINEAR
from gradsurgery.gradients.rows_in_graph import rows_stay_apart


class _Tap(torch.autograd.Function):
    """The identity, in place; hands on the gradient that passes through."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, _anchor: Tensor, receive: "_Receive") -> Tensor:
        ctx.receive = receive
        if output._is_view():  # in place, autograd would copy its gradient piece by piece
            return output.clone()
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.receive(gradient)
        return gradient, None, None


class _StandIn(torch.autograd.Function):
    """A parameter's view, once per row; hands on the gradient."""

    @staticmethod
    def forward(
        ctx: Any, view: Tensor, _anchor: Tensor, shape: list[int], receive: "_Receive"
    ) -> Tensor:
        ctx.receive = receive
        ctx.shape = view.shape
        return view.expand(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.receive(gradient)
        return gradient.sum_to_size(ctx.shape), None, None, None


class _Known(torch.autograd.Function):
    """The identity; marks where a tapped call reads a parameter."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


_OURS = {cast(Any, function)._backward_cls for function in (_Tap, _StandIn, _Known)}
_Receive = Callable[[Tensor], None]
_KNOWN = {**LINEAR, **NORMALIZATIONS}
_UNKNOWN: tuple[tuple[str, ...], Any] = (), None
_MARKS = ("_KnownBackward", "_StandInBackward")


class Tap:
    """A call of a layer, until its gradients are computed, and the parameters that it uses."""

    def __init__(self, call: LayerCall) -> None:
        self.call: LayerCall | None = call
        self.parameters = list(call.parameters.values())


class Recorder(TorchFunctionMode):
    """Entered around the forward pass and the losses of N samples; then `backward`.

    parameters: whose calls to look for. One with a hook of the user's on its gradient is left
        alone, so that the hook runs.
    samples: N.

    taps: the calls seen, in order; uses: how many of them use a parameter.
    dtypes: of the numbers that were computed.
    gradient_lost: whether something was computed from the samples that has no gradient, by which
        they may see each other and no backward pass shows it.
    hidden: parameters that a pass within a backward pass gave gradients, which no tap saw.
    differentiated: whether the pass itself went back through a tap, so that its losses depend on
        gradients.
    """

    def __init__(self, parameters: Iterable[Tensor], samples: int) -> None:
        super().__init__()
        self.parameters = {id(parameter): parameter for parameter in parameters}
        followed = [p for p in self.parameters.values() if not p._backward_hooks]
        self._followed = {id(parameter) for parameter in followed}
        self._views = Views(followed)
        self._samples = samples
        self.uses: Counter[Tensor] = Counter()
        self._receiver: Callable[[Tap | None, Tensor], None] | None = None
        self._anchor = torch.zeros((), requires_grad=True, device="cpu")
        self._leaf: Tensor | None = None
        self.dtypes: set[torch.dtype] = set()
        self.taps: list[Tap] = []
        self.gradient_lost = False
        self.hidden: set[Tensor] = set()
        self.differentiated = False

    def watched(self, x: Tensor) -> Tensor:
        """The samples, to be given to the model in their place."""
        if not x.dtype.is_floating_point:
            self.gradient_lost = True
            return x.detach().clone()
        self._leaf = x.detach().clone().requires_grad_()
        self.dtypes.add(x.dtype)
        return self._leaf.clone()  # which the model may write into

    @property
    def precision(self) -> float:
        """How far apart two numbers may be that differ by rounding: √ε of the coarsest type."""
        return math.sqrt(max((torch.finfo(dtype).eps for dtype in self.dtypes), default=1e-7))

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _TO_NUMPY:  # refused where a gradient is wanted, which is our doing
            args = [args[0].detach(), *args[1:]]
            self.gradient_lost = True
        result = self._tapped(func, args, kwargs)
        self._watch(func, args, kwargs, result)
        return result

    def _tapped(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The result of the call, with a tap where it is one of a known layer."""
        names, build = _KNOWN.get(function, _UNKNOWN)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        roles = [role for role in ("weight", "bias") if id(given.get(role)) in self._followed]
        call: LayerCall | None
        if roles and build is not None:
            call = build(given, {role: given[role] for role in roles})
        else:
            call = broadcast_call(function, args, kwargs, self._views)
        if call is None or not self._may_tap(call):
            result = function(*args, **kwargs)
            self._views.note(function, args, result)
            return result
        tap = Tap(call)
        self.taps.append(tap)
        self.uses.update(tap.parameters)
        receive = partial(self._receive, tap)
        if isinstance(call, BroadcastCall):
            view, shape = call.view, call.shape
            stand_in = _StandIn.apply(view, self._anchor, shape, receive)
            args, kwargs = tree_map(lambda v: stand_in if v is view else v, (args, kwargs))
            return function(*args, **kwargs)
        # elsewhere in the call the same parameter has another use
        given.update((role, _Known.apply(given[role])) for role in roles)
        return _Tap.apply(function(**given), self._anchor, receive)

    def _may_tap(self, call: LayerCall) -> bool:
        rows = call.input.shape[0] if call.input.ndim else 0
        return (
            rows > 0
            and rows % self._samples == 0
            and torch.is_grad_enabled()
            # as in `torch.utils.checkpoint`, whose second run is not seen
            and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
            and not _is_in_functorch()
        )

    def _watch(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        found, given = list(_tensors([result])), list(_tensors([*args, *kwargs.values()]))
        if given:  # what is made of no tensor, as random numbers are, is rounded nowhere
            self.dtypes.update(one.dtype for one in found if one.dtype.is_floating_point)
        if _is_in_functorch() or function in _HOOKS:
            self.gradient_lost = True
        if self.gradient_lost or function in _ONLY_SHAPES:
            return
        lost = function in _TO_PYTHON or any(not one.requires_grad for one in found)
        self.gradient_lost = lost and any(
            one.requires_grad and id(one) not in self.parameters for one in given
        )

    def _receive(self, tap: Tap | None, gradient: Tensor) -> None:
        if self._receiver is None:
            self.differentiated = True
            return
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            self._receiver(tap, gradient)

    def left_in_graph(self, losses: Tensor) -> list[Tensor]:
        """The parameters that the losses reach by a use that is not tapped."""
        beside = graph_of(losses, ends=_MARKS)
        found = {id(node.variable) for node in beside if hasattr(node, "variable")}
        return [parameter for key, parameter in self.parameters.items() if key in found]

    def keeps_apart(self, losses: Tensor) -> bool:
        """Whether the graph shows that each loss reaches its sample, and its rows at taps, alone.

        A hook could still mix them, and counts as a gradient that is lost.
        """
        if self._samples == 1 or self.gradient_lost:
            return self._samples == 1
        kinds = {function._backward_cls for function in (_Tap, _StandIn)}
        return rows_stay_apart(
            losses,
            self._samples,
            lambda node: type(node) in kinds or getattr(node, "variable", None) is self._leaf,
        )

    def go_back(
        self,
        losses: Tensor,
        receiver: Callable[[Tap | None, Tensor], None],
        *,
        weights: Float[Tensor, " samples"] | None = None,
        to_samples: bool,
    ) -> None:
        """One backward pass of Σ ℓ_i, in which `receiver` gets the gradient at each tap.

        weights: w_i, for one of Σ w_i ℓ_i that keeps the graph.
        to_samples: whether it gets that of the samples too, where there is one, with None.

        Raises `ArgumentError` for reentrant checkpointing, which has no graph.
        """
        self._receiver = receiver
        leaf = [self._leaf] if to_samples and self._leaf is not None else []
        leaves, own_passes = what_is_behind(losses, "of the samples", known=_OURS)
        try:
            _, *found = torch.autograd.grad(
                losses,
                [self._anchor, *leaf, *(leaves if own_passes else ())],
                torch.ones_like(losses) if weights is None else weights.to(losses.dtype),
                retain_graph=weights is not None,
                allow_unused=True,
            )
            for gradient in found[: len(leaf)]:
                if gradient is not None:
                    self._receive(None, gradient)
        finally:
            self._receiver = None
            reached = [p for p in self.parameters.values() if p.grad is not None]
            self.hidden.update(reached)
            for parameter in reached:
                parameter.grad = None


def _is_in_functorch() -> bool:
    """Whether a transform such as `torch.func.grad` runs, where taps do not work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what `torch.compile` made runs as it was written: else its uses go unseen."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among the values, and in lists and tuples of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


_ONLY_SHAPES = functions_named(
    *("new_empty", "new_zeros", "new_ones", "empty_like", "zeros_like", "ones_like"),
    *("rand_like", "randn_like", "randint_like"),
)
# a hook may change the gradient by what it knows of the other samples
_HOOKS = {torch.Tensor.register_hook, cast(Any, torch.Tensor).grad_fn.__get__}
_TO_NUMPY = functions_named("numpy", "__array__")
_TO_PYTHON = functions_named(
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__"),
    *("__contains__", "equal", "allclose", "is_nonzero"),
)
