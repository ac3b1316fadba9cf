"""Layers put together into the parts of a network that a person knows."""

from collections.abc import Mapping

from torch import nn

from gradsurgery.gradients.conflict import Conflict, layer_of
from gradsurgery.gradients.gradient_gram import block_of


def group_names(model: nn.Module) -> dict[str, str]:
    """The group of each layer that owns parameters, from the input to the output.

    A group is a block (`block_of`), together with the normalisation after it: blocks with no
    parameter of two dimensions or more join the block before them, or after where they come first.

    >>> group_names(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)))
    {'0': '0, 1', '1': '0, 1', '2': '2'}
    """
    blocks: dict[str, list[str]] = {}
    wide: set[str] = set()
    for name, parameter in model.named_parameters():
        layer = layer_of(name, model)
        block = block_of(layer)
        blocks.setdefault(block, [])
        if layer not in blocks[block]:
            blocks[block].append(layer)
        if parameter.ndim > 1:
            wide.add(block)
    joined: list[list[str]] = []
    for block in blocks:
        if joined and (block not in wide or not wide.intersection(joined[-1])):
            joined[-1].append(block)
        else:
            joined.append([block])
    return {
        layer: ", ".join(group) for group in joined for block in group for layer in blocks[block]
    }


def grouped(layers: Mapping[str, Conflict], names: Mapping[str, str]) -> dict[str, Conflict]:
    """The sum of the conflicts of each group's layers; `names` are the layers' groups."""
    groups: dict[str, Conflict] = {}
    for layer, conflict in layers.items():
        group = names.get(layer, layer)
        groups[group] = groups[group] + conflict if group in groups else conflict
    return groups
