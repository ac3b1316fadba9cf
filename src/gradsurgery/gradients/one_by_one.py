"""Further passes, of one sample each or with other neighbours: the slow way, and checks."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.layers.layer_call import PIECE, Gram, inner_products
from gradsurgery.gradients.model_state import ModelState
from gradsurgery.gradients.recorder import Recorder, Tap
from gradsurgery.gradients.verification import (
    Piece,
    are_near,
    refuse_mixed,
    verified_backward,
)

SampleLoss = Callable[[Any, Any], Tensor]
_STACKED = 4 * PIECE


class Samples(NamedTuple):
    """N samples x and what to compare them with, y, and what gives them losses."""

    model: nn.Module
    loss: SampleLoss
    x: Tensor
    y: Any


def sample_losses(loss: SampleLoss, output: Any, y: Any, samples: int) -> Tensor:
    """The loss of each sample: as `loss` gives them, or one call per sample for a scalar."""
    losses = loss(output, y)
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
    if not isinstance(output, Tensor) or not output.ndim or len(output) != samples:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ArgumentError(
            f"the loss of one sample needs the sample's own output, expected a tensor with "
            f"{samples} rows from the model, found {found}; give a loss of shape [{samples}]"
        )
    found_losses = [loss(output[i : i + 1], y[i : i + 1]) for i in range(samples)]
    for one in found_losses:
        if not isinstance(one, Tensor) or one.numel() != 1:
            _refuse_form(1, list(one.shape) if isinstance(one, Tensor) else type(one).__name__)
    return torch.stack([one.reshape(()) for one in found_losses])


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
        self, samples: Samples, output: Any, losses: Tensor, state: ModelState, precision: float
    ) -> None:
        self._samples = samples
        rows = isinstance(output, Tensor) and output.ndim > 0 and len(output) == len(losses)
        self._output = output.detach() if rows else None
        self._losses = losses.detach()
        self._state = state
        self._precision = precision

    def loss(self, i: int, around: Recorder | None = None) -> Tensor:
        """The loss of sample i by itself; raises `ArgumentError` where it is not that of the pass.

        around: what to enter around the pass.
        """
        model, loss, all_x, all_y = self._samples
        self._state.restore()
        x, y = all_x[i : i + 1].detach().clone(), all_y[i : i + 1]
        try:
            with around or nullcontext():
                output = model(x if around is None else around.watched(x))
                losses = sample_losses(loss, output, y, 1)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise ArgumentError(
                f"{type(model).__name__} runs on {len(self._losses)} samples and not on sample {i} "
                f"alone, so that it has no gradient of its own: {str(error).splitlines()[0]}"
            ) from error
        same = are_near(losses[0], self._losses[i], self._losses, self._precision)
        if same and self._output is not None:
            whole = self._output
            same = isinstance(output, Tensor) and output.shape[1:] == whole.shape[1:]
            same = same and are_near(output[0], whole[i], whole, self._precision)
        if not same:
            refuse_mixed(model)
        return losses[0]

    def losses(self) -> Iterator[Tensor]:
        """That of each sample."""
        return (self.loss(i) for i in range(len(self._losses)))

    def confirm(self, taps: list[Tap], parameters: list[Tensor]) -> bool:
        """Whether each sample alone has the gradients that it had in the pass over all.

        taps: those of the pass over all; parameters: whose taps to compare.
        """
        wanted = {id(parameter) for parameter in parameters}
        batch = [tap for tap in taps if wanted.intersection(map(id, tap.parameters))]
        for i in range(len(self._losses)):
            recorder = Recorder(parameters, 1)
            loss = self.loss(i, recorder)
            if loss.requires_grad:
                left = recorder.left_in_graph(loss)
                verified_backward(recorder, loss[None], _ignore, left, keep_graph=False)
            if len(recorder.taps) != len(batch) or not all(
                _same_projection(one.plain, other.plain, i, self._precision)
                for one, other in zip(recorder.taps, batch, strict=True)
            ):
                return False
        return True


def _ignore(_parameter: Tensor, _pieces: list[Piece]) -> None:
    """For passes of which only the taps are looked at."""


def _same_projection(alone: Tensor | None, batch: Tensor | None, i: int, precision: float) -> bool:
    if alone is None or batch is None:  # the losses do not reach it
        return all(found is None or not found[-1].any() for found in (alone, batch))
    return are_near(alone[0], batch[i], batch, precision)


def neighbours_matter(samples: Samples, losses: Tensor, state: ModelState) -> bool:
    """Whether a sample's loss changes with the other samples, the random numbers being the same.

    The samples are replaced a half at a time, so often that any two are once in different halves.
    """
    model, loss, x, y = samples
    numbers = torch.arange(len(x), device=x.device)
    for bit in range((len(x) - 1).bit_length()):
        for half in (0, 1):
            kept = (numbers >> bit) % 2 == half
            others = x.detach().clone()
            others[~kept] = x.detach().roll(1, 0)[~kept]
            state.restore()
            again = sample_losses(loss, model(others), y, len(x)).detach()
            if not are_near(again[kept], losses[kept].detach(), losses.detach(), 1e-6):
                return True
    return False


def stacked_grams(
    losses: Callable[[], Iterable[Tensor]], parameters: list[Tensor], samples: int
) -> Iterator[tuple[Tensor, Gram]]:
    """Each parameter's inner products, from one backward pass a sample.

    The gradients are made for as many parameters at a time as `_STACKED` holds.
    """
    for some in _portions(parameters, _STACKED // samples):
        rows = [
            torch.autograd.grad(loss, some, retain_graph=True, materialize_grads=True)
            if loss.requires_grad
            else [torch.zeros_like(parameter) for parameter in some]
            for loss in losses()
        ]
        for parameter, column in zip(some, zip(*rows, strict=True), strict=True):
            dense = [row.to_dense() if row.is_sparse else row for row in column]
            yield parameter, inner_products(torch.stack(dense))


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
