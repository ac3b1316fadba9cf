"""`gradsurgery.gradient_gram`: all inner products of per-sample gradients, layer by layer."""

import logging
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsurgery.algorithms.forward import NormalizedRows
from gradsurgery.engine.parameters import trainable_parameters
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.gradients.layers import Gram
from gradsurgery.gradients.model_state import ModelState, unchanged
from gradsurgery.gradients.one_by_one import (
    SampleLoss,
    Samples,
    SinglePasses,
    check_model_and_loss,
    failures_as,
    sample_losses,
    stacked_grams,
)
from gradsurgery.gradients.recorder import Recorder, uncompiled
from gradsurgery.gradients.verification import (
    check_samples_apart,
    is_opaque,
    verified_backward,
)
from gradsurgery.rules.gramian import cosines_of

Summand = TypeVar("Summand")  # matrices of inner products, or conflicts

_logger = logging.getLogger(__name__)


def block_of(layer: str) -> str:
    """The block that a layer belongs to: its name up to the first number.

    >>> block_of("blocks.3.attn.qkv"), block_of("layer1.0.conv2"), block_of("fc")
    ('blocks.3', 'layer1.0', 'fc')
    """
    parts = layer.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: first + 1])


def grouped(layers: Mapping[str, Summand], of: Callable[[str], str]) -> dict[str, Summand]:
    """The sum over each group's layers, in their order; `of` names the group of a layer."""
    groups: dict[str, Summand] = {}
    for layer, value in layers.items():
        group = of(layer)
        groups[group] = operator.add(groups[group], value) if group in groups else value
    return groups


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
        return grouped(self.layers, of)

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
    check_model_and_loss(model, loss)
    if not isinstance(x, Tensor) or not x.ndim or not len(x):
        found = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(f"x is a tensor of at least one sample along its rows, found {found}")
    named = trainable_parameters(model.named_parameters())
    check_samples_apart(model)
    parameters = [parameter for _, parameter in named]
    with unchanged(model, loss) as state, torch.enable_grad(), uncompiled(), NormalizedRows():
        grams, losses, one_by_one = _parameter_grams(Samples(model, loss, x, y), parameters, state)
    slow = {id(parameter) for parameter in one_by_one}
    layers: dict[str, Gram] = {}
    fallbacks: dict[str, None] = {}
    for name, parameter in named:
        layer = layer_of(name, model)
        none = torch.zeros(len(x), len(x), dtype=torch.float64, device="cpu")
        gram = layers.setdefault(layer, none)
        if parameter in grams:
            layers[layer] = gram + grams[parameter].cpu()
        if id(parameter) in slow:
            fallbacks[layer] = None
        if not layers[layer].isfinite().all():
            raise NonFiniteError(
                f"the gradients of the samples at layer {layer} are NaN or infinite; look at the "
                "images and the weights",
                domain=None,
                parameter=layer,
            )
    if not losses.isfinite().all():
        raise NonFiniteError(
            "the loss of a sample is NaN or infinite; look at the images and the weights",
            domain=None,
            parameter=None,
        )
    if fallbacks:
        _logger.warning("per-sample gradients one pass a sample for: %s", _some_of(list(fallbacks)))
    return GradientGram(layers, losses, tuple(fallbacks))


def _parameter_grams(
    samples: Samples, parameters: list[Tensor], state: ModelState
) -> tuple[dict[Tensor, Gram], Tensor, list[Tensor]]:
    """G_ij = ∇ℓ_i · ∇ℓ_j by parameter, the losses ℓ_i, and which took one pass per sample."""
    model, loss, x, y = samples
    recorder = Recorder(parameters, len(x))
    with recorder:
        with failures_as(f"{type(model).__name__} does not run on x, {x.dtype} {list(x.shape)}"):
            output = model(recorder.watched(x))
        losses = sample_losses(loss, output, y, len(x))
    if not losses.requires_grad:
        raise ArgumentError(
            "the losses of the samples do not depend on a parameter that is trained; compute them "
            "from a model with a parameter that requires a gradient, and detach nothing"
        )
    # what was differentiated on the way takes one pass per sample: no piece of it is made
    left = parameters if recorder.differentiated else recorder.left_in_graph(losses)
    singles = SinglePasses(samples, output, losses, state, recorder.precision)
    unseen = recorder.gradient_lost or is_opaque(model)
    # at least one of them, against all that was not thought of
    numbers = range(len(x)) if unseen or not singles.has_own_losses() else [len(x) - 1]
    # beside it the one with the largest loss, to tell how large gradients are
    compared = sorted({*numbers, int(losses.detach().argmax())})
    passes = verified_backward(recorder, losses, left, compared)
    output, losses = None, losses.detach()
    slow = parameters
    if passes.apart and not recorder.differentiated:
        fast = [parameter for parameter in parameters if parameter not in passes.refused]
        if not fast or singles.confirm(fast, passes.at_taps, numbers, compared):
            slow = [parameter for parameter in parameters if parameter in passes.refused]
    return passes.grams | dict(stacked_grams(singles, slow, len(x))), losses, slow


def _some_of(layers: list[str]) -> str:
    """The first three, and how many more there are."""
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return ", ".join(layers[:3]) + more


def layer_of(parameter: str, model: nn.Module) -> str:
    """The name of the layer that owns a parameter of this name; the model's class at the top."""
    return parameter.rpartition(".")[0] or type(model).__name__
