"""One forward and backward pass in which the uses of parameters are seen instead of summed up.

A parameter in a known use takes part detached: autograd neither keeps it nor computes its summed
gradient. A tap on the layer's output receives the output's gradient instead.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from gradsurgery.gradients.broadcast import BroadcastUse
from gradsurgery.gradients.capture import captured
from gradsurgery.gradients.meeting import Views, meeting
from gradsurgery.gradients.use import Use


class Piece(NamedTuple):
    """A parameter's part in one use, and the gradient of the use's output."""

    use: Use
    role: str
    gradient: Tensor


Receiver = Callable[[Tensor, list[Piece]], None]


class _Tap(torch.autograd.Function):
    """The identity, in place; hands on the gradient that passes through."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, _anchor: Tensor, receive: Callable[[Tensor], bool]
    ) -> Tensor:
        ctx.receive = receive
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.receive is not None and ctx.receive(gradient):
            ctx.receive = None  # the layer's input is no longer needed
        return gradient, None, None


class _Source(torch.autograd.Function):
    """A constant whose gradient is handed on."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, use: BroadcastUse, receive: Callable[[Tensor], bool]
    ) -> Tensor:
        ctx.receive = receive
        return use.stand_in()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        if ctx.receive is not None and ctx.receive(gradient):
            ctx.receive = None
        return None, None, None


class Interceptor(TorchFunctionMode):
    """Sees every use of parameters whose per-sample gradients are known.

    A parameter with a hook of the user's on its gradient is left alone, so that the hook runs.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._parameters = {id(parameter): parameter for parameter in parameters}
        followed = [p for p in self._parameters.values() if not p._backward_hooks]
        self._followed = {id(parameter) for parameter in followed}
        self._views = Views(followed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the call, as a use where it is one."""
        kwargs = kwargs or {}
        use = captured(func, args, kwargs, self._is_followed)
        if use is None:
            use = meeting(func, args, kwargs, self._views)
        if use is not None:
            return self._run(use, func, args, kwargs)
        result = func(*args, **kwargs)
        self._views.note(func, args, result)
        return result

    def _is_followed(self, value: object) -> bool:
        return id(value) in self._followed

    def _run(
        self, use: Use, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        raise NotImplementedError


class Recorder(Interceptor):
    """Entered around a forward pass; `backward` then hands out the parameters' uses.

    apart: for each use in the order of the pass, whether its rows are known to be the samples'.
        A parameter that has another use stays in the graph of the losses, as usual.
    """

    def __init__(self, parameters: Iterable[Tensor], apart: Sequence["Sight"]) -> None:
        super().__init__(parameters)
        self._apart = apart
        self._seen = 0
        self._uses: Counter[int] = Counter()
        self._pieces: dict[int, list[Piece]] = {}
        self._receiver: Receiver | None = None
        self._anchor = torch.zeros((), requires_grad=True)

    def left_in_graph(self, losses: Iterable[Tensor]) -> list[Tensor]:
        """The parameters with a use that is not known, which the losses reach as usual."""
        found = {id(leaf) for leaf in _leaves(losses)}
        return [parameter for key, parameter in self._parameters.items() if key in found]

    def is_used(self, parameter: Tensor) -> bool:
        """Whether a known use of the parameter was seen."""
        return id(parameter) in self._uses

    def is_reached_by(self, losses: Iterable[Tensor]) -> bool:
        """Whether the losses come from this pass."""
        return any(leaf is self._anchor for leaf in _leaves(losses))

    def backward(self, losses: Sequence[Tensor], receiver: Receiver) -> None:
        """Propagate the sum of the losses back, and hand out each parameter's pieces.

        receiver: called with a parameter and its pieces as soon as they are complete, during the
            pass; nothing of them is kept afterwards.
        """
        self._receiver = receiver
        try:
            torch.autograd.backward(losses, inputs=[self._anchor])
            for key in list(self._pieces):  # some of whose uses the losses do not reach
                receiver(self._parameters[key], self._pieces.pop(key))
        finally:
            self._receiver = None
            self._pieces = {}

    def _run(
        self, use: Use, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        sight = self._apart[self._seen] if self._seen < len(self._apart) else None
        self._seen += 1
        if sight is None or sight != Sight.of(function, use, apart=True) or _is_run_again():
            return function(*args, **kwargs)
        for parameter in use.parameters.values():
            self._uses[id(parameter)] += 1
        receive = partial(self._receive, use)
        if isinstance(use, BroadcastUse):
            source = _Source.apply(self._anchor, use, receive)
            args, kwargs = replaced(args, kwargs, lambda value: value is use.view, lambda _: source)
            return function(*args, **kwargs)
        args, kwargs = replaced(args, kwargs, self._is_followed, Tensor.detach)
        output = function(*args, **kwargs)
        return _Tap.apply(output, self._anchor, receive)

    def _receive(self, use: Use, gradient: Tensor) -> bool:
        """Whether the gradient was taken, which it is in the pass of `backward` alone."""
        if self._receiver is None:
            return False
        with torch.autocast(gradient.device.type, enabled=False):
            for role, parameter in use.parameters.items():
                pieces = self._pieces.setdefault(id(parameter), [])
                pieces.append(Piece(use, role, gradient))
                if len(pieces) == self._uses[id(parameter)]:
                    self._receiver(parameter, self._pieces.pop(id(parameter)))
        return True


def _is_run_again() -> bool:
    """Whether hooks keep what autograd saves, as in `torch.utils.checkpoint`.

    Its second run, in the backward pass, is not seen, and has to save what the first did.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what `torch.compile` made runs as it was written: else its uses go unseen."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class Sight(NamedTuple):
    """A use as a probe saw it, and whether the samples' rows were apart there."""

    function: str
    parameters: tuple[int, ...]
    apart: bool

    @staticmethod
    def of(function: Callable[..., Any], use: Use, *, apart: bool) -> "Sight":
        """What to compare the same use in another pass with."""
        parameters = tuple(id(parameter) for parameter in use.parameters.values())
        return Sight(function.__name__, parameters, apart)


def replaced(
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


def _leaves(losses: Iterable[Tensor]) -> Iterable[Tensor]:
    """The leaves that the losses' graph reaches."""
    waiting = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
