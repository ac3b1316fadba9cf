"""Batch normalisation when every domain has a forward pass of its own."""

from collections.abc import Iterator
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradsurgery.errors import ArgumentError


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer normalises by the statistics of its batch.

    Every class torch derives from its batch norm counts: 1d, 2d, 3d, lazy and synchronised ones
    and timm's, which hold their activation. Layers that are frozen by construction do not count.
    """
    return any(True for _ in _batch_norm_layers(model))


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
        for layer in _batch_norm_layers(model):
            layer.eval()


def _batch_norm_layers(model: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in model.modules() if isinstance(layer, _BatchNorm))
