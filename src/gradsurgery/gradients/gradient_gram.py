"""`gradsurgery.gradient_gram`: all inner products of per-sample gradients, layer by layer."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.gradients.layers.layer_call import Gram, gram_in_spans
from gradsurgery.gradients.model_state import ModelState, RandomState, unchanged
from gradsurgery.gradients.one_by_one import (
    SampleLoss,
    Samples,
    SinglePasses,
    sample_losses,
    stacked_grams,
)
from gradsurgery.gradients.recorder import Recorder, uncompiled
from gradsurgery.gradients.verification import (
    Piece,
    check_samples_apart,
    is_opaque,
    verified_backward,
)
from gradsurgery.rules.gramian import cosines_of

_logger = logging.getLogger(__name__)


def block_of(layer: str) -> str:
    """The block that a layer belongs to: its name up to the first number.

    >>> block_of("blocks.3.attn.qkv"), block_of("layer1.0.conv2"), block_of("fc")
    ('blocks.3', 'layer1.0', 'fc')
    """
    parts = layer.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: first + 1])


@dataclass(frozen=True)
class GradientGram:
    """Inner products of the gradients of N samples: G_ij = ∇ℓ_i · ∇ℓ_j.

    layers: G over the parameters that one layer owns itself, by the layer's name in the model, in
        the order of the model, float64 on the CPU. A parameter that several layers share counts
        for the first.
    losses: the samples' losses ℓ_i.
    fallbacks: the layers for which no fast formula is known, or for which it did not check, whose
        gradients were computed one sample at a time.
    """

    layers: dict[str, Gram]
    losses: Float[Tensor, " samples"]
    fallbacks: tuple[str, ...] = ()

    @property
    def total(self) -> Gram:
        """G over all trained parameters: the sum over the layers."""
        return torch.stack(list(self.layers.values())).sum(0)

    def groups(self, of: Callable[[str], str] = block_of) -> dict[str, Gram]:
        """G by group of layers; `of` names the group of a layer, by default its block."""
        grouped: dict[str, Gram] = {}
        for layer, gram in self.layers.items():
            group = of(layer)
            grouped[group] = grouped[group] + gram if group in grouped else gram
        return grouped

    def cosines(self) -> Gram:
        """cos_ij = G_ij / √(G_ii G_jj) over all parameters, and 0 where a gradient is zero."""
        return cosines_of(self.total)


def gradient_gram(model: nn.Module, loss: SampleLoss, x: Tensor, y: Any) -> GradientGram:
    """All pairwise inner products of the samples' gradients, G_ij = ∇ℓ_i · ∇ℓ_j, by layer.

    ℓ_i is the loss of sample i by itself. One forward pass over all samples gives the gradients of
    every layer whose formula is known; they are checked on that pass, and what does not check is
    computed one pass a sample, with a warning in the log that names the layer.

    model: used in the mode it is in. Batch normalisation must be in evaluation mode; dropout may be
        active, and then each sample has its own mask. Frozen parameters do not count.
    loss: `loss(model(x), y)` is either one loss per sample, [N], sample i's from i alone (e.g.
        `torch.nn.CrossEntropyLoss(reduction="none")`), or a scalar, and is then called on one
        sample at a time.
    x: the N samples, along the first dimension.
    y: whatever `loss` compares with, one per sample along the first dimension.

    Afterwards nothing of the model is different, also after an exception: buffers, attributes,
    mode, hooks, `.grad`, and the state of the random generators.

    Raises `ArgumentError` where samples see each other, so that none has a gradient of its own
    (e.g. batch normalisation in training mode), where nothing is trained, or for a loss of another
    shape; `NonFiniteError` naming the layer where a gradient is NaN or infinite.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    >>> gram = gradient_gram(model, lambda output, _: output[:, 0], x, x)
    >>> gram.total
    tensor([[1., 2.],
            [2., 5.]], dtype=torch.float64)
    """
    if not len(x):
        raise ArgumentError("x holds no sample; give at least one")
    owners = owned_parameters(model)
    check_samples_apart(model)
    parameters = [parameter for owned in owners.values() for parameter in owned]
    with unchanged(model, loss) as state, torch.enable_grad(), uncompiled():
        grams, losses, one_by_one = _parameter_grams(Samples(model, loss, x, y), parameters, state)
    zero = torch.zeros(len(x), len(x), dtype=torch.float64)
    layers = {}
    for name, owned in owners.items():
        parts = [grams[parameter].cpu() for parameter in owned if parameter in grams]
        layers[name] = torch.stack(parts).sum(0) if parts else zero
        if not layers[name].isfinite().all():
            raise NonFiniteError(
                f"the gradients of the samples at layer {name} are NaN or infinite; look at the "
                "images and the weights",
                domain=None,
                parameter=name,
            )
    if not losses.isfinite().all():
        raise NonFiniteError(
            "the loss of a sample is NaN or infinite; look at the images and the weights",
            domain=None,
            parameter=None,
        )
    slow = {id(parameter) for parameter in one_by_one}
    fallbacks = tuple(
        name for name, owned in owners.items() if any(id(part) in slow for part in owned)
    )
    if fallbacks:
        _logger.warning("per-sample gradients one pass a sample for: %s", ", ".join(fallbacks))
    return GradientGram(layers, losses, fallbacks)


class _ParameterGrams(NamedTuple):
    """G_ij = ∇ℓ_i · ∇ℓ_j by parameter, the losses ℓ_i, and which took one pass per sample.

    A parameter that the losses do not reach has no Gram matrix.
    """

    grams: dict[Tensor, Gram]
    losses: Tensor
    one_by_one: list[Tensor]


def _parameter_grams(
    samples: Samples, parameters: list[Tensor], state: ModelState
) -> _ParameterGrams:
    model, loss, x, y = samples
    recorder = Recorder(parameters, len(x))
    with recorder:
        output = model(recorder.watched(x))
        before_loss = RandomState()
        losses = sample_losses(loss, output, y, len(x))
    if not losses.requires_grad:
        raise ArgumentError(
            "the losses of the samples do not depend on a parameter that is trained; compute them "
            "from a model with a parameter that requires a gradient, and detach nothing"
        )
    has_plain_loss = not recorder.differentiated and before_loss.is_current()
    grams: dict[Tensor, Gram] = {}

    def receive(parameter: Tensor, pieces: list[Piece]) -> None:
        grams[parameter] = _gram_of(parameter, pieces, len(x))

    left = recorder.left_in_graph(losses)
    if recorder.differentiated:
        left = parameters
    verdict = verified_backward(recorder, losses, receive, left)
    singles = SinglePasses(samples, output, losses, state, recorder.precision)
    output, losses = None, losses.detach()
    everything = recorder.differentiated or not verdict.samples_apart
    slow = {id(parameter) for parameter in verdict.slow}
    fast = [parameter for parameter in parameters if id(parameter) not in slow]
    if fast and not everything:
        unseen = recorder.gradient_lost or is_opaque(model)
        all_of_them = unseen or not has_plain_loss or not singles.has_own_losses()
        # at least one of them, against all that was not thought of
        numbers = range(len(x)) if all_of_them else [len(x) - 1]
        everything = not singles.confirm(recorder.taps, fast, numbers)
    one_by_one = parameters if everything else verdict.slow
    grams.update(stacked_grams(singles, one_by_one, len(x)))
    return _ParameterGrams(grams, losses, one_by_one)


def _gram_of(parameter: Tensor, pieces: list[Piece], samples: int) -> Gram:
    if len(pieces) == 1:
        (piece,) = pieces
        return piece.call.gram(piece.role, piece.gradient, samples)

    def rows(span: slice) -> Tensor:
        parts = (piece.call.rows(piece.role, piece.gradient, samples, span) for piece in pieces)
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    step = max(piece.call.step for piece in pieces)
    return gram_in_spans(parameter.shape, samples, rows, step=step)


def owned_parameters(model: nn.Module) -> dict[str, list[Tensor]]:
    """The trained parameters that each layer owns itself, one that several share with the first.

    Raises `ArgumentError` where there are none, or where one has no real gradient.
    """
    seen: set[Tensor] = set()
    owners: dict[str, list[Tensor]] = {}
    for name, layer in model.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad and p not in seen]
        seen.update(own)
        if own:
            owners[name or type(layer).__name__] = own
    if not owners:
        raise ArgumentError(
            "the model has no parameter that requires a gradient; unfreeze the layers to look at"
        )
    for name, own in owners.items():
        for parameter in own:
            if isinstance(parameter, nn.UninitializedParameter):
                raise ArgumentError(
                    f"the layer {name} has no weights before its first pass; call the model once"
                )
            if parameter.is_complex():
                raise ArgumentError(
                    f"the layer {name} has complex parameters, of type {parameter.dtype}; inner "
                    "products are of real gradients alone"
                )
    return owners
