"""Further passes, of one sample each or with other neighbours: the slow way, and checks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradsurgery.engine.graph import what_is_behind
from gradsurgery.errors import ArgumentError, is_out_of_memory
from gradsurgery.gradients.layers import PIECE, Gram, inner_products
from gradsurgery.gradients.model_state import Draws, ModelState
from gradsurgery.gradients.recorder import Recorder, Tap
from gradsurgery.gradients.verification import are_near, projected_backward, refuse_mixed

SampleLoss = Callable[[Any, Any], Tensor]
_STACKED = 16 * PIECE


class Samples(NamedTuple):
    """N samples x and what to compare them with, y, and what gives them losses."""

    model: nn.Module
    loss: SampleLoss
    x: Tensor
    y: Any


def check_model_and_loss(model: Any, loss: Any) -> None:
    """Raise `ArgumentError` unless they are a module and something that can be called."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a torch.nn.Module, found a {type(model).__name__}")
    if not callable(loss) or isinstance(loss, type):
        found = f"the class {loss.__name__}" if isinstance(loss, type) else type(loss).__name__
        raise ArgumentError(
            f"loss is called as loss(model(x), y), found {found}; give e.g. "
            "torch.nn.CrossEntropyLoss()"
        )


def called_loss(loss: SampleLoss, output: Any, y: Any, whose: str) -> Any:
    """What `loss` gives; raises `ArgumentError`, in one line, where it fails."""
    with failures_as(
        f"the loss {whose} cannot be computed from the model's output, {_described(output)}, and "
        f"y, {_described(y)}"
    ):
        return loss(output, y)


@contextmanager
def failures_as(what: str) -> Iterator[None]:
    """Inside, an error of the user's network or loss becomes one line, which begins with `what`."""
    try:
        yield
    except ArgumentError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArgumentError(f"{what}: {first}") from error


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"a {type(value).__name__}"


def sample_losses(loss: SampleLoss, output: Any, y: Any, samples: int) -> Tensor:
    """The loss of each sample: as `loss` gives them, or one call per sample for a scalar."""
    losses = called_loss(loss, output, y, "of the samples")
    if not isinstance(losses, Tensor):
        _refuse_form(samples, type(losses).__name__)
    if losses.shape == (samples,):
        return losses
    if losses.ndim:
        _refuse_form(samples, list(losses.shape))
    if samples == 1:
        return losses.reshape(1)
    return losses_by_slices(loss, output, y, samples)


def losses_by_slices(loss: SampleLoss, output: Any, y: Any, samples: int) -> Tensor:
    """The loss of each sample, called with its output alone."""
    if not any(_has_rows(leaf, samples) for leaf in tree_leaves(output)):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ArgumentError(
            f"the loss of one sample needs the sample's own output, expected a tensor with "
            f"{samples} rows from the model, found {found}; give a loss of shape [{samples}]"
        )
    found_losses = [
        called_loss(loss, row_of(output, i, samples), target_of(y, i), f"of sample {i} alone")
        for i in range(samples)
    ]
    for one in found_losses:
        if not isinstance(one, Tensor) or one.numel() != 1:
            _refuse_form(1, list(one.shape) if isinstance(one, Tensor) else type(one).__name__)
    return torch.stack([one.reshape(()) for one in found_losses])


def _has_rows(value: Any, samples: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == samples


def row_of(output: Any, i: int, samples: int) -> Any:
    """Sample i's part of the tensors in an output, as a batch of one; the others as they are."""
    return tree_map(lambda leaf: leaf[i : i + 1] if _has_rows(leaf, samples) else leaf, output)


def target_of(y: Any, i: int) -> Any:
    """What sample i is compared with, as a batch of one."""
    if y is None:
        return None
    if isinstance(y, dict):
        return {name: target_of(value, i) for name, value in y.items()}
    with failures_as("y holds one target per sample along its first dimension"):
        return y[i : i + 1]


def _refuse_form(samples: int, found: object) -> NoReturn:
    raise ArgumentError(
        f"the loss is one value per sample, expected shape [{samples}] or a scalar, found {found}; "
        'give e.g. torch.nn.CrossEntropyLoss(reduction="none")'
    )


class SinglePasses:
    """Passes over one sample each, all from the same state of the model.

    output, losses: those of the pass over all samples, which each sample alone must have too.
    precision: how far apart they may be, relative to the largest of them.
    """

    def __init__(
        self,
        samples: Samples,
        output: Any,
        losses: Tensor,
        state: ModelState,
        precision: float,
    ) -> None:
        self._samples = samples
        self._output = tree_map(_detached, output)
        self._losses = losses.detach()
        self._state = state
        self._precision = precision

    @cached_property
    def _draws(self) -> Draws | None:
        if not self._state.has_drawn():
            return None
        model, loss, x, y = self._samples
        draws = Draws(len(x))
        self._state.restore()
        with draws:
            sample_losses(loss, model(x.detach().clone()), y, len(x))
        return draws

    def has_own_losses(self) -> bool:
        """Whether each output alone has its sample's loss, as far as can be told without a pass."""
        _, loss, _, y = self._samples
        try:
            alone = losses_by_slices(loss, self._output, y, len(self._losses))
        except ArgumentError:
            return False
        return are_near(alone, self._losses, self._losses, self._precision)

    def loss(self, i: int, around: Recorder | None = None) -> Tensor:
        """The loss of sample i by itself; raises `ArgumentError` where it is not that of the pass.

        around: what to enter around the pass.
        """
        model, loss, all_x, all_y = self._samples
        draws = nullcontext() if self._draws is None else Draws(1, given=(self._draws, i))
        self._state.restore()
        x, y = all_x[i : i + 1].detach().clone(), target_of(all_y, i)
        what = (
            f"{type(model).__name__} runs on {len(self._losses)} samples and not on sample {i} "
            "alone, so that it has no gradient of its own"
        )
        with failures_as(what), around or nullcontext(), draws:
            output = model(x if around is None else around.watched(x))
            losses = sample_losses(loss, output, y, 1)
        same = are_near(losses[0], self._losses[i], self._losses, self._precision)
        if not same or not self._has_same_output(output, i):
            refuse_mixed(model)
        return losses[0]

    def _has_same_output(self, output: Any, i: int) -> bool:
        own, among = tree_leaves(output), tree_leaves(self._output)
        return len(own) == len(among) and all(
            isinstance(one, Tensor)
            and one.shape[1:] == whole.shape[1:]
            and are_near(one[0], whole[i], whole, self._precision)
            for one, whole in zip(own, among, strict=True)
            if _has_rows(whole, len(self._losses))
        )

    def confirm(
        self,
        parameters: list[Tensor],
        among_others: Mapping[Tap, Tensor],
        numbers: Iterable[int],
        compared: list[int],
    ) -> bool:
        """Whether these samples alone have the gradients that they had in the pass over all.

        among_others: the projections of the samples `compared` there, for all taps in order.
        parameters: whose taps to compare.
        """
        wanted = set(parameters)
        batch = [rows for tap, rows in among_others.items() if wanted.intersection(tap.parameters)]
        for i in numbers:
            recorder = Recorder(parameters, 1)
            loss = self.loss(i, recorder)
            if len(recorder.taps) != len(batch):
                return False
            own = projected_backward(recorder, loss[None], [0], to_samples=False)
            for tap, rows in zip(recorder.taps, batch, strict=True):
                if not are_near(own[tap][0], rows[compared.index(i)], rows, self._precision):
                    return False
        return True


def _detached(value: Any) -> Any:
    """A leaf that a loss may differentiate by, as it may by the output itself."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def stacked_grams(
    singles: SinglePasses, parameters: list[Tensor], samples: int
) -> Iterator[tuple[Tensor, Gram]]:
    """Each parameter's inner products, from one backward pass a sample.

    The gradients are made for as many parameters at a time as `_STACKED` holds.
    """
    for some in _portions(parameters, _STACKED // samples):
        losses = map(singles.loss, range(samples))
        rows = [whole_gradients(loss, some, "of the samples") for loss in losses]
        for parameter, column in zip(some, zip(*rows, strict=True), strict=True):
            yield parameter, inner_products(torch.stack(column))


def whole_gradients(loss: Tensor, parameters: Sequence[Tensor], whose: str) -> list[Tensor]:
    """The gradients, dense, and zeros where the loss does not reach a parameter.

    A function that somebody has written may run a backward pass of its own within this one, as
    reversible layers do: what that adds to `.grad`, which is None afterwards, belongs to them.
    """
    for parameter in parameters:
        parameter.grad = None
    if not loss.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    whole = []
    leaves, own_passes = what_is_behind(loss, whose)
    asked = [*parameters, *leaves] if own_passes else parameters
    found = torch.autograd.grad(loss, asked, materialize_grads=True)[: len(parameters)]
    for parameter, gradient in zip(parameters, found, strict=True):
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        inner, parameter.grad = parameter.grad, None
        whole.append(dense if inner is None else dense + inner)
    return whole


def _portions(parameters: list[Tensor], components: int) -> Iterator[list[Tensor]]:
    """The parameters in lists of at most so many components, or one parameter."""
    portion: list[Tensor] = []
    for parameter in parameters:
        if portion and sum(map(Tensor.numel, [*portion, parameter])) > components:
            yield portion
            portion = []
        portion.append(parameter)
    if portion:
        yield portion
