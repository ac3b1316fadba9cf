"""Batch normalisation when every domain has a forward pass of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradsurgery.errors import ArgumentError


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer normalises by the statistics of its batch.

    Every class torch derives from its batch norm counts: 1d, 2d, 3d, lazy and synchronised ones
    and timm's, which hold their activation. Layers that are frozen by construction do not count.
    """
    return any(True for _ in batch_norm_layers(model))


def set_training_mode(
    model: nn.Module, batch_norm: Literal["frozen", "per-domain", "pooled"]
) -> None:
    """Put `model` in training mode, its batch-norm layers in evaluation mode where frozen.

    - `frozen`: they normalise by their running statistics, which stay as they are; their affine
      parameters still train. Each domain sees the same function.
    - `per-domain`: they normalise each pass by its own batch, which holds one domain.
    - `pooled`: the same mode, for one pass that holds all domains.

    Raises `ArgumentError` for any other word.
    """
    if batch_norm not in ("frozen", "per-domain", "pooled"):
        raise ArgumentError(
            f"batch_norm is {batch_norm!r}; expected 'frozen', 'per-domain' or 'pooled'"
        )
    model.train()
    if batch_norm == "frozen":
        for layer in batch_norm_layers(model):
            layer.eval()


def check_batch_size(
    model: nn.Module, batch_norm: str, *, batch_size: int, domains: int, image_size: int
) -> None:
    """Raise `ArgumentError` where a layer is to normalise a channel by a single value.

    batch_norm: as in `set_training_mode`. batch_size: images per domain. domains: how many train.
    image_size: the side of the images in pixels.

    Torch refuses one value a channel, which is zero whatever it was. A single image has as many
    values as its map of features has pixels: one blank image passes through the model, in
    evaluation mode, to see how many.
    """
    together = batch_size * (domains if batch_norm == "pooled" else 1)
    if batch_norm == "frozen" or together > 1 or not has_batch_norm(model):
        return

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            raise ArgumentError(
                f"a batch of 1 image leaves {type(layer).__name__} a single value a channel to "
                "normalise by; use a batch size of 2 or more, or batch_norm 'frozen'"
            )

    hooks = [layer.register_forward_pre_hook(look) for layer in batch_norm_layers(model)]
    device = next(model.parameters()).device
    try:
        with keeping_modes(model), torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Inside, layers may be put in another mode; afterwards each is in the mode it was in."""
    modes = [(layer, layer.training) for layer in model.modules()]
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def batch_norm_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that `has_batch_norm` looks for."""
    return (layer for layer in model.modules() if isinstance(layer, _BatchNorm))
