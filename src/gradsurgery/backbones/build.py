"""From a name to a classifier: with a new last layer, or with the weights that were saved of it."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from gradsurgery.atomic import expanded
from gradsurgery.backbones.networks import (
    Network,
    Triple,
    find_network,
    guard_group_norm,
    library_has,
    network_by,
)
from gradsurgery.backbones.weights import (
    State,
    file_digest,
    load_all,
    load_state,
    metadata_of,
    read_state,
)
from gradsurgery.errors import ArgumentError, WeightsError, one_line
from gradsurgery.seeds import derive_seed


@dataclass(frozen=True)
class Backbone:
    """A classifier and what its images need: `model(normalize(images, mean, std))` gives logits.

    weights_digest: the sha256 of the weights file, None without one.
    provenance: where a network from another package comes from, None for torchvision's, timm's and
        ours.
    heads: the paths of its last layers, where they are known.
    weights_metadata: what the weights file says of itself.
    """

    name: str
    model: nn.Module
    mean: Triple
    std: Triple
    pretrained: bool
    weights_digest: str | None
    provenance: dict[str, str | None] | None = None
    heads: tuple[str, ...] = ()
    weights_metadata: Mapping[str, str] = field(default_factory=dict)


def build_backbone(
    name: str,
    *,
    classes: int,
    weights: str = "default",
    seed: int,
    image_size: int | None = None,
) -> Backbone:
    """A classifier in evaluation mode with a last layer for `classes`.

    Random weights come from `seed` alone and leave the global random state as it is: the same
    seed gives the same weights, and the same new last layer whatever the other weights are.

    - `name`: a torchvision classifier (`alexnet`), a timm model (`tf_efficientnet_lite0`,
      `timm/resnet18` where torchvision has the name too), `small-cnn`, `small-mlp`, or a function
      or class of your own: `package.module:name`, or an entry point in the group
      `gradsurgery.backbones`.
    - `weights`: `default` (the library's ImageNet weights, downloaded), torchvision's name of
      others of that network (`IMAGENET1K_V1`), `none`, or a FILE: a state dict in .pth, .pt or
      .safetensors. A last layer for another number of classes in it gives way to the new one.
    - `image_size`: the side of the images in pixels, which some transformers must know. Where it
      is given, one blank image is passed through the model to see that it fits.

    A function of your own is called as `name(classes)` and gives a module from images
    [batch, 3, height, width] to logits [batch, classes], all its layers initialised. Where it has a
    parameter `image_size`, it is given that too. Where it has a parameter `pretrained`, that is
    True for the weights `default`; without, it has no such weights. Images are normalised by
    `mean` and `std` of the module's `pretrained_cfg`, as timm's models have it, or ImageNet's.

    Raises `ArgumentError` for an unknown name or a size the model cannot take, and `WeightsError`
    where the weights are not to be had or do not fit.
    """
    if classes < 1:
        raise ArgumentError(f"classes is {classes}; expected 1 or more")
    if not weights:
        raise ArgumentError("weights is empty; expected 'default', 'none' or a file")
    with torch.random.fork_rng(devices=[]):  # what is imported may draw numbers
        get = find_network(name, classes, image_size)
    with seeded(derive_seed(seed, "weights")):
        built = get()
        state, digest, origin = None, None, f"the {weights} weights of {name}"
        metadata: dict[str, str] = {}
        if weights == "default" or weights in built.published:
            state = _downloaded(name, built, weights)
        elif weights != "none":
            _check_named(name, built, weights)
            file = expanded(weights)
            origin, digest = weights, file_digest(file)
            state, metadata = read_state(file), metadata_of(file)
    if built.new_heads:
        with seeded(derive_seed(seed, "head")):
            _draw_heads(built)
    if state is not None:
        load_state(built.model, state, built.heads, built.adapt, name=name, origin=origin)
    model = built.model.eval()
    if torch.__version__ < "2.14":
        guard_group_norm(model)
    if image_size is not None:
        check_image_size(model, name, classes, image_size)
    return Backbone(
        name,
        model,
        built.mean,
        built.std,
        state is not None,
        digest,
        built.provenance,
        built.heads,
        metadata,
    )


def _draw_heads(built: Network) -> None:
    """Give the last layer the weights of a new `nn.Linear`, as when it is replaced by hand.

    Several of timm's models draw it with a standard deviation ten times as large, which their
    pretrained layers take hundreds of steps to unlearn.
    """
    for path in built.heads:
        head = built.model.get_submodule(path)
        if isinstance(head, nn.Linear | nn.Conv2d):
            head.reset_parameters()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, what is made is float32 on the processor, and what is drawn comes from `seed`.

    Nothing of it is left outside.
    """
    # Only the CPU's generator: torch.manual_seed would also reseed every accelerator.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(default)


def _check_named(name: str, built: Network, weights: str) -> None:
    """Raise where `weights` looks like a library's name of weights and is none of this network."""
    if re.fullmatch("imagenet[a-z0-9_]*", weights.lower()) and not Path(weights).exists():
        default = ["'default'"] if built.download is not None else []
        known = ", ".join([*built.published, *default, "'none'"])
        raise WeightsError(
            f"there are no weights {weights} of {name}, and no such file; give {known} or a FILE"
        )


def _downloaded(name: str, built: Network, weights: str) -> State:
    if built.download is None:
        raise WeightsError(f"there are no default weights of {name}; give weights 'none' or a FILE")
    try:
        return built.download(weights)
    except Exception as error:  # each library and network stack has errors of its own
        raise WeightsError(
            f"cannot get the {weights} weights of {name}: {one_line(error)}; "
            "give weights 'none' or a FILE"
        ) from error


def check_image_size(model: nn.Module, name: str, classes: int, size: int) -> None:
    """Pass a blank image through; raises `ArgumentError` where not one logit a class comes out."""
    try:
        with torch.no_grad(), torch.device("cpu"):
            logits = model(torch.zeros(1, 3, size, size, dtype=torch.float32))
    except (Exception, SystemExit) as error:  # the library's or anybody's code
        raise ArgumentError(
            f"{name} cannot take images of {size} pixels: {one_line(error)}; choose another size"
        ) from error
    if not isinstance(logits, torch.Tensor):
        cure = "return its logits" if hasattr(logits, "logits") else "choose another backbone"
        raise ArgumentError(
            f"{name} gives a {type(logits).__name__}, expected a tensor of logits; {cure}"
        )
    if logits.shape != (1, classes):
        raise ArgumentError(
            f"{name} gives {list(logits.shape)} numbers for an image, expected one logit a class, "
            f"[1, {classes}]; choose another backbone"
        )


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
    called = own if isinstance(own, str) else name
    if isinstance(own, nn.Module):
        called, model = type(own).__name__, own.cpu()
    else:
        with torch.random.fork_rng(devices=[]):
            if callable(own):
                called = getattr(own, "__qualname__", name)
                get = network_by(own, called, classes, image_size)
            elif own is not None or library_has(name):
                get = find_network(called, classes, image_size)
            else:
                raise ArgumentError(
                    f"{origin} is of the backbone {name!r}, which is no name of torchvision or "
                    "timm; hand its function over: --backbone package.module:function, or "
                    "backbone=function"
                )
        room = 8 * sum(map(prod, shapes.values())) + _ALSO
        with seeded(0), _Limit(room, name) if own is None else nullcontext():
            model = get().model
    load_all(model, shapes, read, name=called, origin=origin)
    model.eval()
    check_image_size(model, called, classes, image_size)
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
