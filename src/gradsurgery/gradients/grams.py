"""The inner products of per-sample gradients, parameter by parameter."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.probe import probe
from gradsurgery.gradients.products import PIECE, Gram, gram_in_spans, inner_products
from gradsurgery.gradients.recorder import Piece, Recorder, uncompiled

SampleLoss = Callable[[Any, Any], Tensor]
_STACKED = 4 * PIECE


class ParameterGrams(NamedTuple):
    """G_ij = ∇ℓ_i · ∇ℓ_j by parameter, the losses ℓ_i, and which took one pass per sample."""

    grams: dict[Tensor, Gram]
    losses: Tensor
    one_by_one: list[Tensor]


@torch.enable_grad()
@uncompiled()
def parameter_grams(
    model: nn.Module, loss: SampleLoss, x: Tensor, y: Any, parameters: Sequence[Tensor]
) -> ParameterGrams:
    """One forward and one backward pass, and further ones for the uses that are not known.

    A parameter that the losses do not reach has no Gram matrix.
    """
    x = x.detach()
    seen = probe(model, x[:1], parameters)
    if seen.mixed:
        raise ArgumentError(
            f"the samples see each other on their way through {type(model).__name__}, so that none "
            "has a gradient of its own; take the layer that compares samples out"
        )
    recorder = Recorder(parameters, seen.sights)
    before = _random_state(x.device)
    with recorder:
        output = model(x)
    losses = sample_losses(loss, output, y, len(x))
    if not losses.requires_grad:
        return ParameterGrams({}, losses.detach(), [])
    left = recorder.left_in_graph([losses])
    grams: dict[Tensor, Gram] = {}
    held: dict[int, Tensor] = {}
    if left and not torch.equal(before, _random_state(x.device)):
        # another pass would draw other masks: go through this one's graph for each sample
        for parameter, rows in _stacked_rows(losses.unbind, left, len(x)):
            if recorder.is_used(parameter):  # and add what the known uses give
                held[id(parameter)] = rows
            else:
                grams[parameter] = inner_products(rows)
    elif left:
        for parameter, rows in _stacked_rows(
            partial(_losses_apart, model, loss, x, y), left, len(x)
        ):
            grams[parameter] = inner_products(rows)

    def receive(parameter: Tensor, pieces: list[Piece]) -> None:
        if parameter not in grams:
            grams[parameter] = _gram_of(parameter, pieces, len(x), held.pop(id(parameter), None))

    recorder.backward([losses.sum()], receive)
    for parameter in left:
        if id(parameter) in held:  # the losses do not reach its known uses
            grams[parameter] = inner_products(held[id(parameter)])
    return ParameterGrams(grams, losses.detach(), left)


def _random_state(device: torch.device) -> Tensor:
    """That of the generator which dropout on `device` draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def sample_losses(loss: SampleLoss, output: Any, y: Any, samples: int) -> Tensor:
    """The loss of each sample: as `loss` gives them, or one call per sample for a scalar."""
    losses = loss(output, y)
    if isinstance(losses, Tensor) and losses.shape == (samples,):
        return losses
    if isinstance(losses, Tensor) and losses.ndim == 0:
        return torch.stack([loss(output[i : i + 1], y[i : i + 1]) for i in range(samples)])
    found = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    raise ArgumentError(
        f"the loss is one value per sample, expected shape [{samples}] or a scalar, found {found}; "
        'give e.g. torch.nn.CrossEntropyLoss(reduction="none")'
    )


def _gram_of(parameter: Tensor, pieces: list[Piece], samples: int, more: Tensor | None) -> Gram:
    if len(pieces) == 1 and more is None:
        (piece,) = pieces
        return piece.use.gram(piece.role, piece.gradient, samples)

    def rows(span: slice) -> Tensor:
        parts = (piece.use.rows(piece.role, piece.gradient, samples, span) for piece in pieces)
        total = next(parts)
        for part in parts:
            total = total + part
        return total if more is None else total + (more[:, span] if more.ndim > 1 else more)

    step = max(piece.use.step for piece in pieces)
    return gram_in_spans(parameter.shape, samples, rows, step=step)


def _losses_apart(model: nn.Module, loss: SampleLoss, x: Tensor, y: Any) -> Iterator[Tensor]:
    for i in range(len(x)):
        output = model(x[i : i + 1])
        yield sample_losses(loss, output, y[i : i + 1], 1)[0]


def _stacked_rows(
    losses: Callable[[], Iterable[Tensor]], parameters: list[Tensor], samples: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter's gradients per sample, from one backward pass a sample.

    They are made for as many parameters at a time as `_STACKED` holds.
    """
    for some in _portions(parameters, _STACKED // samples):
        rows = [
            torch.autograd.grad(loss, some, retain_graph=True, materialize_grads=True)
            for loss in losses()
        ]
        for parameter, column in zip(some, zip(*rows, strict=True), strict=True):
            yield parameter, torch.stack(column)


def _portions(parameters: list[Tensor], components: int) -> Iterator[list[Tensor]]:
    """The parameters in lists of at most so many components, or one parameter."""
    portion: list[Tensor] = []
    for parameter in parameters:
        if portion and sum(map(Tensor.numel, [*portion, parameter])) > components:
            yield portion
            portion = []
        portion.append(parameter)
    yield portion
