"""`gradsurgery.gradient_gram`: all inner products of per-sample gradients, layer by layer."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.gradients.grams import SampleLoss, parameter_grams
from gradsurgery.gradients.mixing import check_samples_apart
from gradsurgery.rules.gramian import cosines_of

Gram = Float[Tensor, "samples samples"]
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
    fallbacks: the layers for which no fast formula is known, whose gradients were computed one
        sample at a time.
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

    model: used in the mode it is in. Batch normalisation must be in evaluation mode, also where a
        layer of your own does it, which is not noticed; dropout may be active, and then each
        sample has its own mask. Frozen parameters do not count.
    loss: `loss(model(x), y)` is either one loss per sample, [N], sample i's from i alone (e.g.
        `torch.nn.CrossEntropyLoss(reduction="none")`), or a scalar, and is then called on one
        sample at a time.
    x: the N samples, along the first dimension.
    y: whatever `loss` compares with, one per sample along the first dimension.

    Every `.grad` stays as it is and no hook remains, also after an exception.

    Raises `ArgumentError` where samples have no gradient of their own (batch normalisation in
    training mode), where nothing is trained, or for a loss of another shape; `NonFiniteError`
    naming the layer where a gradient is NaN or infinite.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    >>> gram = gradient_gram(model, lambda output, _: output[:, 0], x, x)
    >>> gram.total
    tensor([[1., 2.],
            [2., 5.]], dtype=torch.float64)
    """
    if not len(x):
        raise ArgumentError("x holds no sample; give at least one")
    check_samples_apart(model)
    owners = _owned_parameters(model)
    parameters = [parameter for owned in owners.values() for parameter in owned]
    grams, losses, one_by_one = parameter_grams(model, loss, x, y, parameters)
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
    slow = {id(parameter) for parameter in one_by_one}
    fallbacks = tuple(
        name for name, owned in owners.items() if any(id(part) in slow for part in owned)
    )
    if fallbacks:
        _logger.info("per-sample gradients one pass a sample for: %s", ", ".join(fallbacks))
    return GradientGram(layers, losses, fallbacks)


def _owned_parameters(model: nn.Module) -> dict[str, list[Tensor]]:
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
    return owners
