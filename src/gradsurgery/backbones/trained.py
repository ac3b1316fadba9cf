"""A network built again for the weights that were saved of it: these and no others."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from gradsurgery.backbones.build import check_image_size, seeded
from gradsurgery.backbones.networks import find_network, library_has, network_by
from gradsurgery.backbones.weights import State, load_all
from gradsurgery.errors import ArgumentError

OwnBackbone = str | nn.Module | Callable[..., nn.Module]
_ALSO = 256 << 20  # bytes of what no file holds: tables that are computed, draws


def rebuild(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[], State],
    *,
    classes: int,
    image_size: int,
    own: OwnBackbone | None = None,
    origin: str,
) -> nn.Module:
    """The network `name` with the weights that `read` gives, in evaluation mode.

    name: of torchvision, timm or ours; that of anybody's own code is not imported.
    shapes: of the weights by name. The network is refused before its memory is taken, where it
        needs more than they do.
    own: in the place of `name`, what the caller hands over: the module, a function of the number
        of classes, or the name of one (`package.module:name`).
    origin: what messages call the weights.

    Raises `ArgumentError` where the network is not to be had, `WeightsError` where it is another.
    """
    if isinstance(own, nn.Module):
        model = own.cpu()
    else:
        with torch.random.fork_rng(devices=[]):
            if callable(own):
                get = network_by(own, getattr(own, "__qualname__", name), classes, image_size)
            elif own is not None or library_has(name):
                get = find_network(own or name, classes, image_size)
            else:
                raise ArgumentError(
                    f"{origin} is of the backbone {name!r}, which is no name of torchvision or "
                    "timm; hand its function over: --backbone package.module:function, or "
                    "backbone=function"
                )
        room = 8 * sum(map(prod, shapes.values())) + _ALSO
        with seeded(0), _Limit(room, name) if own is None else nullcontext():
            model = get().model
    load_all(model, shapes, read, name=name, origin=origin)
    model.eval()
    check_image_size(model, name, classes, image_size)
    return model


class _Limit(TorchDispatchMode):
    """Refuses to make tensors of more bytes, in all, than `room`."""

    def __init__(self, room: int, name: str) -> None:
        super().__init__()
        self._room, self._name = room, name

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        size = args[0] if args else None
        if isinstance(size, list | tuple) and all(isinstance(side, int) for side in size):
            self._room -= 4 * prod(size)
            if self._room < 0:
                raise ArgumentError(f"the weights are too few for a {self._name}")
        return func(*args, **(kwargs or {}))
