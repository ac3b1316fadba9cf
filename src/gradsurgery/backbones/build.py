"""From a name to a classifier with a new last layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradsurgery.backbones.small_cnn import SmallCNN
from gradsurgery.backbones.weights import State, file_digest, load_state, read_state
from gradsurgery.errors import ArgumentError, WeightsError
from gradsurgery.seeds import derive_seed

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Backbone:
    """A classifier and what its images need: `model(normalize(images, mean, std))` gives logits."""

    name: str
    model: nn.Module
    mean: Triple
    std: Triple
    pretrained: bool
    weights_digest: str | None


@dataclass(frozen=True)
class _Design:
    """A library's classifier, with random weights and with what loading weights needs."""

    model: nn.Module
    mean: Triple
    std: Triple
    heads: tuple[str, ...]
    adapt: Callable[[State], State]
    download: Callable[[], State] | None


def backbone_names() -> list[str]:
    """Every name `build_backbone` knows.

    Where torchvision and timm both have a name, the plain name is torchvision's and timm's is
    `timm/NAME`.
    """
    from timm import list_models

    ours = _torchvision_names()
    theirs = [f"timm/{name}" if name in ours else name for name in list_models()]
    return ["small-cnn", *ours, *theirs]


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
      `timm/resnet18` where torchvision has the name too), or `small-cnn`.
    - `weights`: `default` (the library's ImageNet weights, downloaded), `none`, or a FILE: a state
      dict in .pth, .pt or .safetensors. A last layer for another number of classes in it gives
      way to the new one.
    - `image_size`: the side of the images in pixels, which some transformers must know. Where it
      is given, one blank image is passed through the model to see that it fits.

    Raises `ArgumentError` for an unknown name or a size the model cannot take, and `WeightsError`
    where the weights are not to be had or do not fit.
    """
    if classes < 1:
        raise ArgumentError(f"classes is {classes}; expected 1 or more")
    if not weights:
        raise ArgumentError("weights is empty; expected 'default', 'none' or a file")
    with _seeded(derive_seed(seed, "weights")):
        design = _design(name, classes, image_size)
        state, digest, origin = None, None, f"the default weights of {name}"
        if weights == "default":
            state = _downloaded(name, design)
        elif weights != "none":
            origin, digest = weights, file_digest(Path(weights))
            state = read_state(Path(weights))
    with _seeded(derive_seed(seed, "head")):
        _draw_heads(design)
    if state is not None:
        load_state(design.model, state, design.heads, design.adapt, name=name, origin=origin)
    model = design.model.eval()
    if image_size is not None:
        _check_image_size(model, name, classes, image_size)
    return Backbone(name, model, design.mean, design.std, state is not None, digest)


def _draw_heads(design: _Design) -> None:
    """Give the last layer the weights of a new `nn.Linear`, as when it is replaced by hand.

    Several of timm's models draw it with a standard deviation ten times as large, which their
    pretrained layers take hundreds of steps to unlearn.
    """
    for path in design.heads:
        head = design.model.get_submodule(path)
        if isinstance(head, nn.Linear | nn.Conv2d):
            head.reset_parameters()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # Only the CPU's generator: torch.manual_seed would also reseed every accelerator.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _design(name: str, classes: int, image_size: int | None) -> _Design:
    if name == "small-cnn":
        half = (0.5, 0.5, 0.5)
        return _Design(SmallCNN(classes), half, half, ("classifier",), lambda state: state, None)
    if name in _torchvision_names():
        return _torchvision_design(name, classes, image_size)
    from timm import is_model

    if is_model(name.removeprefix("timm/")):
        return _timm_design(name, classes, image_size)
    close = get_close_matches(name, backbone_names(), n=5)
    hint = f"did you mean {' or '.join(close)}?" if close else "give a torchvision or timm name"
    raise ArgumentError(f"there is no backbone {name!r}; {hint}")


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _torchvision_design(name: str, classes: int, image_size: int | None) -> _Design:
    from torchvision import models

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Auxiliary outputs would come beside the logits. The input transform is what their
        # ImageNet weights were trained with.
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    elif image_size is not None and name.startswith("vit_"):
        options = {"image_size": image_size}
    elif image_size is not None and name.startswith("maxvit_"):
        options = {"input_size": (image_size, image_size)}
    model = _constructed(
        name, image_size, lambda: models.get_model(name, num_classes=classes, **options)
    )
    layers = list(model.named_modules())
    linear = [path for path, layer in layers if isinstance(layer, nn.Linear)]
    convolutions = [path for path, layer in layers if isinstance(layer, nn.Conv2d)]
    head = linear[-1] if linear else convolutions[-1]  # squeezenet classifies by a convolution
    preset = models.get_model_weights(name).DEFAULT.transforms()

    def download() -> State:
        # Through a model of the library's, which knows the old key names of its own files.
        state: State = models.get_model(name, weights="DEFAULT", progress=False).state_dict()
        return state

    mean, std = _triple(preset.mean), _triple(preset.std)
    return _Design(model, mean, std, (head,), partial(adapt_torchvision, model), download)


def adapt_torchvision(model: nn.Module, state: State) -> State:
    """Leave out auxiliary heads; resample the position embeddings of a ViT of another size."""
    from torchvision.models.densenet import DenseNet
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    state = {
        key: value
        for key, value in state.items()
        if not key.startswith(("AuxLogits.", "aux1.", "aux2."))
    }
    if isinstance(model, DenseNet):  # the published files say norm.1 for today's norm1
        state = {
            key.replace("norm.", "norm").replace("conv.", "conv") if "denselayer" in key else key: v
            for key, v in state.items()
        }
    if isinstance(model, VisionTransformer) and "encoder.pos_embedding" in state:
        resampled: State = interpolate_embeddings(model.image_size, model.patch_size, state)
        return resampled
    return state


def _timm_design(name: str, classes: int, image_size: int | None) -> _Design:
    import sys

    import timm

    plain = name.removeprefix("timm/")
    options: dict[str, Any] = {"num_classes": classes}
    preset = _constructed(name, None, lambda: timm.get_pretrained_cfg(plain))
    if (
        preset is not None
        and preset.fixed_input_size
        and image_size not in (None, preset.input_size[1])
    ):
        options["img_size"] = image_size
    model = _constructed(name, image_size, lambda: timm.create_model(plain, **options))
    settings = model.pretrained_cfg
    heads = settings.get("classifier")
    paths = (heads,) if isinstance(heads, str) else tuple(heads or ())
    if not paths or any(f"{path}.weight" not in model.state_dict() for path in paths):
        raise ArgumentError(f"{name} is no classifier: it has no last layer; choose another")
    module = sys.modules[type(model).__module__]

    def adapt(state: State) -> State:
        # timm keeps the filter that renames keys and resamples position embeddings beside the class
        rewrite = getattr(module, "checkpoint_filter_fn", None)
        adapted: State = rewrite(dict(state), model) if rewrite else state
        return adapted

    def download() -> State:
        state: State = timm.create_model(plain, pretrained=True, **options).state_dict()
        if settings["num_classes"] != classes:  # the second model drew a head of its own
            own = model.state_dict()
            state.update({key: own[key] for key in own if key.rpartition(".")[0] in paths})
        return state

    mean, std = _triple(settings["mean"]), _triple(settings["std"])
    return _Design(model, mean, std, paths, adapt, download)


def _constructed(name: str, image_size: int | None, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        at = "" if image_size is None else f" for images of {image_size} pixels"
        raise ArgumentError(
            f"{name} cannot be built{at}: {_one_line(error)}; choose another size or backbone"
        ) from error


def _downloaded(name: str, design: _Design) -> State:
    if design.download is None:
        raise WeightsError(f"there are no default weights of {name}; give weights 'none' or a FILE")
    try:
        return design.download()
    except Exception as error:  # each library and network stack has errors of its own
        raise WeightsError(
            f"cannot get the default weights of {name}: {_one_line(error)}; "
            "give weights 'none' or a FILE"
        ) from error


def _check_image_size(model: nn.Module, name: str, classes: int, size: int) -> None:
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ArgumentError(
            f"{name} cannot take images of {size} pixels: {_one_line(error)}; choose another size"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        raise ArgumentError(f"{name} does not give one logit a class; choose another backbone")


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
