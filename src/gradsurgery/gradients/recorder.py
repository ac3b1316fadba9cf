"""One forward pass in which the calls of layers are seen, and backward passes that are checked.

A tap on a layer's output receives the output's gradient b. The rows of the output are taken to be
the samples', one sample's after the other's, and every backward pass from the samples' losses
verifies it: with the losses weighted, w_i for sample i, the rows of sample i must receive w_i b.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.inner_products import wide
from gradsurgery.gradients.layers import layer_call
from gradsurgery.gradients.layers.elementwise import BroadcastCall, Views, broadcast_call
from gradsurgery.gradients.layers.layer_call import LayerCall
from gradsurgery.rules.gramian import full_precision

_ROUNDING = 64
"""A tap's rows are verified up to so many units in the last place.

On a processor they are the same bit for bit, since the weights are powers of two; accelerators
sum in an order that changes from pass to pass.
"""


class Piece(NamedTuple):
    """A parameter's part in one call of a layer, and the gradient of the layer's output."""

    call: LayerCall
    role: str
    gradient: Tensor


Receiver = Callable[[Tensor, list[Piece]], None]


class _Tap(torch.autograd.Function):
    """The identity, in place; hands on the gradient that passes through."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, _anchor: Tensor, receive: "_Receive") -> Tensor:
        ctx.receive = receive
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
    """The identity; marks where a tapped call reads a parameter or the samples."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


_Receive = Callable[[Tensor], None]
_MARKS = ("_KnownBackward", "_StandInBackward")


class Tap:
    """A call of a layer, and random projections of the gradients of its output's rows.

    weighted: those of each weighted backward pass, divided by the weights; plain: that of the pass
        without weights. All are [samples, 4].
    reads_samples: whether the call's input are the samples themselves.
    """

    def __init__(self, call: LayerCall, *, reads_samples: bool) -> None:
        self.call: LayerCall | None = call
        self.reads_samples = reads_samples
        self.parameters = list(call.parameters.values())
        self.weighted: list[Tensor] = []
        self.plain: Tensor | None = None


class Recorder(TorchFunctionMode):
    """Entered around the forward pass and the losses of N samples; then `backward`.

    parameters: whose calls to look for. One with a hook of the user's on its gradient is left
        alone, so that the hook runs.
    samples: N.

    taps: the calls seen, in order.
    gradient_lost: whether something was computed from the samples that has no gradient, by which
        they may see each other and no backward pass shows it.
    differentiated: whether the pass itself went back through a tap, so that its losses depend on
        gradients.
    """

    def __init__(self, parameters: Iterable[Tensor], samples: int) -> None:
        super().__init__()
        self._parameters = {id(parameter): parameter for parameter in parameters}
        followed = [p for p in self._parameters.values() if not p._backward_hooks]
        self._followed = {id(parameter) for parameter in followed}
        self._views = Views(followed)
        self._samples = samples
        self._uses: Counter[int] = Counter()
        self._receiver: Callable[[Tap, Tensor], None] | None = None
        self._anchor = torch.zeros((), requires_grad=True)
        self._leaf: Tensor | None = None
        self._inputs: Tensor | None = None
        self._dtypes: set[torch.dtype] = set()
        self.taps: list[Tap] = []
        self.gradient_lost = False
        self.differentiated = False

    def watched(self, x: Tensor) -> Tensor:
        """The samples, to be given to the model in their place."""
        if not x.dtype.is_floating_point:
            self.gradient_lost = True
            return x.detach().clone()
        self._leaf = x.detach().clone().requires_grad_()
        self._inputs = self._leaf.clone()  # which the model may write into
        self._dtypes.add(x.dtype)
        return self._inputs

    @property
    def precision(self) -> float:
        """How far apart two numbers may be that differ by rounding: √ε of the coarsest type."""
        return math.sqrt(max((torch.finfo(dtype).eps for dtype in self._dtypes), default=1e-7))

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
        call = layer_call(function, args, kwargs, self._is_followed)
        if call is None:
            call = broadcast_call(function, args, kwargs, self._views)
        if call is None or not self._may_tap(call):
            result = function(*args, **kwargs)
            self._views.note(function, args, result)
            return result
        is_read = self._inputs is not None and any(one is self._inputs for one in args[:1])
        tap = Tap(call, reads_samples=is_read and not isinstance(call, BroadcastCall))
        self.taps.append(tap)
        for parameter in tap.parameters:
            self._uses[id(parameter)] += 1
        receive = partial(self._receive, tap)
        if isinstance(call, BroadcastCall):
            view, shape = call.view, call.shape
            stand_in = _StandIn.apply(view, self._anchor, shape, receive)
            args, kwargs = _replaced(args, kwargs, lambda v: v is view, lambda _: stand_in)
            return function(*args, **kwargs)
        args, kwargs = _replaced(args, kwargs, self._is_marked, _Known.apply)
        return _Tap.apply(function(*args, **kwargs), self._anchor, receive)

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

    def _is_followed(self, value: object) -> bool:
        return id(value) in self._followed

    def _is_marked(self, value: object) -> bool:
        return self._is_followed(value) or (value is self._inputs and value is not None)

    def _watch(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        found = list(_tensors([result]))
        self._dtypes.update(one.dtype for one in found if one.dtype.is_floating_point)
        if _is_in_functorch():
            self.gradient_lost = True
        if self.gradient_lost or function in _ONLY_SHAPES:
            return
        lost = function in _TO_PYTHON or any(not one.requires_grad for one in found)
        self.gradient_lost = lost and any(
            one.requires_grad and id(one) not in self._parameters
            for one in _tensors([*args, *kwargs.values()])
        )

    def _receive(self, tap: Tap, gradient: Tensor) -> None:
        if self._receiver is None:
            self.differentiated = True
            return
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            self._receiver(tap, gradient)

    def left_in_graph(self, losses: Tensor) -> list[Tensor]:
        """The parameters that the losses reach by a use that is not tapped.

        Raises `ArgumentError` for reentrant checkpointing, which has no graph.
        """
        found = {id(leaf) for leaf in _leaves(losses)}
        return [parameter for key, parameter in self._parameters.items() if key in found]

    def backward(
        self, losses: Tensor, receiver: Receiver, left: Iterable[Tensor], *, keep_graph: bool
    ) -> "Verdict":
        """Propagate the losses back, weighted and then as they are.

        receiver: called with a parameter and its pieces as soon as they are complete and verified,
            during the last pass; nothing of them is kept afterwards.
        left: parameters that are not to be handed out.
        keep_graph: whether the graph is needed afterwards.
        """
        unverified = {id(parameter) for parameter in left}
        pieces: dict[int, list[Piece]] = {}
        apart = True
        rounds = _weights(self._samples, narrow=torch.float16 in self._dtypes)
        project = _Projection(self._samples)

        def receive_plain(tap: Tap, gradient: Tensor) -> None:
            nonlocal apart
            tap.plain = project(gradient)
            call, tap.call = tap.call, None  # the layer's input is no longer needed
            verified = _agree(tap.weighted, tap.plain, len(rounds))
            apart = apart and (verified or not tap.reads_samples)
            for role, parameter in () if call is None else call.parameters.items():
                key = id(parameter)
                if not verified:
                    unverified.add(key)
                if key in unverified:
                    pieces.pop(key, None)
                    continue
                pieces.setdefault(key, []).append(Piece(call, role, gradient))
                if len(pieces[key]) == self._uses[key]:
                    receiver(parameter, pieces.pop(key))

        leaf = self._leaf
        if leaf is None or id(leaf) not in {id(found) for found in _leaves(losses)}:
            leaf = None  # all that reads the samples is tapped
        of_inputs: list[Tensor] = []
        for weights in rounds:
            weights = weights.to(losses.device)

            def receive_weighted(tap: Tap, gradient: Tensor, weights: Tensor = weights) -> None:
                tap.weighted.append(project(gradient) / weights[:, None])

            found = self._go_back(losses, weights, leaf, receive_weighted, keep_graph=True)
            if found is not None:
                of_inputs.append(project(found) / weights[:, None])
        ones = torch.ones_like(losses)
        found = self._go_back(losses, ones, leaf, receive_plain, keep_graph=keep_graph)
        if found is not None:
            apart = apart and _agree(of_inputs, project(found), len(rounds))
        for key in list(pieces):  # some of whose uses the losses do not reach
            receiver(self._parameters[key], pieces.pop(key))
        slow = [parameter for key, parameter in self._parameters.items() if key in unverified]
        return Verdict(slow, samples_apart=apart)

    def _go_back(
        self,
        losses: Tensor,
        weights: Tensor,
        leaf: Tensor | None,
        receiver: Callable[[Tap, Tensor], None],
        *,
        keep_graph: bool,
    ) -> Tensor | None:
        """One backward pass; the samples' gradient, where they are to have one."""
        self._receiver = receiver
        wanted = [self._anchor] if leaf is None else [self._anchor, leaf]
        try:
            found = torch.autograd.grad(
                losses,
                wanted,
                weights.to(losses.dtype),
                retain_graph=keep_graph,
                allow_unused=True,
            )
        finally:
            self._receiver = None
        return None if leaf is None else found[1]


class Verdict(NamedTuple):
    """What a backward pass showed.

    slow: the parameters whose gradients by sample it does not give.
    samples_apart: whether each sample influences its own loss alone.
    """

    slow: list[Tensor]
    samples_apart: bool


class _Projection:
    """Random projections of each sample's part of a gradient: [samples, 4], its length kept."""

    _PIECE = 1 << 16
    _COLUMNS = 4

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._directions: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, gradient: Tensor) -> Float[Tensor, "samples 4"]:
        rows = gradient.to(wide(gradient.dtype)).reshape(self._samples, -1)
        directions = self._of(rows)
        signs = directions[: self._COLUMNS]
        total = rows.new_zeros(self._samples, self._COLUMNS)
        with full_precision():
            for at, piece in enumerate(rows.split(self._PIECE, dim=1)):
                # the pieces share directions, and differ by a factor
                factor = signs[at % self._COLUMNS] * (1 + at // self._COLUMNS)
                total += piece @ directions[: piece.shape[1]] * factor
        return total

    def _of(self, rows: Tensor) -> Tensor:
        key = (rows.device, rows.dtype)
        if key not in self._directions:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(self._PIECE, self._COLUMNS, generator=generator)
            self._directions[key] = (drawn / 2).to(*key)
        return self._directions[key]


def _weights(samples: int, *, narrow: bool) -> list[Float[Tensor, " samples"]]:
    """Weights of weighted passes: in no two samples are they the same in all passes.

    They are powers of two, so that multiplying by them rounds nothing.

    narrow: whether float16, with its few exponents, is in the pass.
    """
    span = 4 if narrow else 32
    powers = torch.exp2(torch.arange(-span, span, dtype=torch.float32))
    values = torch.cat([powers, -powers])
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    rounds = 0
    while len(values) ** rounds < samples:
        rounds += 1
    numbers = torch.arange(samples)
    return [values[numbers // len(values) ** at % len(values)] for at in range(rounds)]


def _agree(weighted: Sequence[Tensor], plain: Tensor, rounds: int) -> bool:
    """Whether in each weighted pass the samples' rows had their weight times what they have."""
    if len(weighted) != rounds:
        return False
    bound = _ROUNDING * torch.finfo(plain.dtype).eps * plain.norm(dim=1)
    wrong = ~plain.isfinite().all(1)  # raises its own error later
    return all(bool((((one - plain).norm(dim=1) <= bound) | wrong).all()) for one in weighted)


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


def _named(*names: str) -> set[Callable[..., Any]]:
    owners = (torch.Tensor, torch)
    return {getattr(owner, name) for name in names for owner in owners if hasattr(owner, name)}


_ONLY_SHAPES = _named(
    *("new_empty", "new_zeros", "new_ones", "empty_like", "zeros_like", "ones_like"),
    *("rand_like", "randn_like", "randint_like"),
)
_TO_NUMPY = _named("numpy", "__array__")
_TO_PYTHON = _named(
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__"),
    *("__contains__", "equal", "allclose", "is_nonzero"),
)


def _replaced(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    which: Callable[[object], bool],
    by: Callable[[Any], Any],
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, those in a list of tensors too, with some of them replaced."""

    def one(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
            return [by(part) if which(part) else part for part in value]
        return by(value) if which(value) else value

    return [one(value) for value in args], {key: one(value) for key, value in kwargs.items()}


def _leaves(losses: Tensor) -> Iterator[Tensor]:
    """The leaves that the losses' graph reaches beside the marks of tapped calls."""
    waiting = [losses.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        kind = type(node).__name__
        if node is None or kind in _MARKS:
            continue
        if kind == "CheckpointFunctionBackward":
            raise ArgumentError(
                "the model is checkpointed with use_reentrant=True, which keeps no graph to go "
                "through; call torch.utils.checkpoint.checkpoint with use_reentrant=False"
            )
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                waiting.append(following)
