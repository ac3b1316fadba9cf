"""Where networks come from: a small one of ours, torchvision, timm, and code of anybody's."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from gradsurgery.backbones.weights import State
from gradsurgery.doors import entry_names, is_door, load_object, provenance
from gradsurgery.errors import ArgumentError, one_line

Triple = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
OURS = ("small-cnn", "small-mlp")


@dataclass(frozen=True)
class Network:
    """A classifier with random weights, and what loading weights into it needs.

    heads: the paths of its last layers. new_heads: whether they are to be drawn anew, as when they
    are replaced by hand. adapt: rewrites a state dict that does not fit as it is. download: gets
    the weights of a name, None where there are none. published: the library's names of weights,
    beside `default`. provenance: where code from elsewhere is from.
    """

    model: nn.Module
    mean: Triple
    std: Triple
    heads: tuple[str, ...]
    adapt: Callable[[State], State] = lambda state: state
    download: Callable[[str], State] | None = None
    published: tuple[str, ...] = ()
    new_heads: bool = True
    provenance: dict[str, str | None] | None = None


def backbone_names() -> list[str]:
    """Every name `build_backbone` knows, beside `package.module:function`.

    Where torchvision and timm both have a name, the plain name is torchvision's and timm's is
    `timm/NAME`.
    """
    from timm import list_models

    ours = _torchvision_names()
    theirs = [f"timm/{name}" if name in ours else name for name in list_models()]
    known = [*OURS, *ours, *theirs]
    return [*known, *(name for name in entry_names("backbone") if name not in known)]


def library_has(name: str) -> bool:
    """Whether `name` is torchvision's, timm's or ours, so that no code from elsewhere is run."""
    if is_door(name):
        return False
    if name in OURS or name in _torchvision_names():
        return True
    from timm import is_model

    return bool(is_model(name.removeprefix("timm/")))


def find_network(name: str, classes: int, image_size: int | None) -> Callable[[], Network]:
    """What builds the network of that name, with weights drawn from the global random state.

    Modules are imported here: the numbers that one draws when it is first imported must not shift
    those that the weights are drawn from.
    """
    if name == "small-cnn":
        return lambda: Network(SmallCNN(classes), HALF, HALF, ("classifier",))
    if name == "small-mlp":
        return lambda: _small_mlp(classes, image_size)
    if library_has(name):
        ours = name in _torchvision_names()
        return partial(_torchvision_network if ours else _timm_network, name, classes, image_size)
    if is_door(name) or name in entry_names("backbone"):
        expected = "a function of the number of classes that gives a torch.nn.Module"
        build = load_object(name, "backbone", fits=_builds_network, expected=expected)
        return network_by(build, name, classes, image_size)
    close = get_close_matches(name, backbone_names(), n=5)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else "give a torchvision or timm name, or a function of your own (package.module:name)"
    )
    raise ArgumentError(f"there is no backbone {name!r}; {hint}")


class SmallCNN(nn.Module):
    """Three 3x3 convolutions of 16, 32 and 64 channels, average pooling and a linear layer.

    About 24,000 parameters. Group norm keeps every image to itself, so that a batch of one domain
    and a batch of several give an image the same logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 16), nn.MaxPool2d(2), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 64)
        )
        self.classifier = nn.Linear(64, classes)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """The logits, `[batch, classes]`, of images of 4 pixels or more."""
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    # The norm's shift takes the place of the convolution's bias.
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.GroupNorm(4, outputs), nn.ReLU(inplace=True)


def _small_mlp(classes: int, image_size: int | None) -> Network:
    """One hidden layer of 128 units: it sees where in the image something is."""
    if image_size is None:
        raise ArgumentError("small-mlp depends on the size of its images; give an image_size")
    hidden = nn.Linear(3 * image_size**2, 128)
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(128, classes))
    return Network(model, HALF, HALF, ("3",))


def network_by(
    build: Callable[..., Any], name: str, classes: int, image_size: int | None
) -> Callable[[], Network]:
    """What calls a function (or class) of the user's own, which messages call `name`.

    See `build_backbone` for what it may take.
    """
    takes = inspect.signature(build).parameters
    options = {"image_size": image_size} if "image_size" in takes else {}
    try:
        inspect.signature(build).bind(classes, **options)
    except TypeError as error:
        raise ArgumentError(
            f"the backbone {name!r} cannot be called with the number of classes alone: {error}"
        ) from error

    def built(**pretrained: bool) -> nn.Module:
        call = partial(build, classes, **options, **pretrained)
        return _checked(name, _constructed(name, image_size, call))

    def get() -> Network:
        has_weights = "pretrained" in takes
        model = built(**{"pretrained": False} if has_weights else {})
        mean, std = _own_normalization(name, model)
        layers = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        return Network(
            model,
            mean,
            std,
            tuple(layers[-1:]),
            download=(lambda _: built(pretrained=True).state_dict()) if has_weights else None,
            new_heads=False,
            provenance=provenance(build),
        )

    return get


def _checked(name: str, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"the backbone {name!r} gives a {type(model).__name__}, expected a torch.nn.Module"
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise ArgumentError(
            f"the backbone {name!r} has lazy layers; pass an image through it before it is returned"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError(f"the backbone {name!r} has no parameter that trains; choose another")
    return model


def _builds_network(found: Any) -> bool:
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    return callable(found) and not isinstance(found, nn.Module)


def _own_normalization(name: str, model: nn.Module) -> tuple[Triple, Triple]:
    """The mean and std in the model's `pretrained_cfg`, as timm's have it; else ImageNet's."""
    stated = getattr(model, "pretrained_cfg", None)
    stated = stated if isinstance(stated, Mapping) else {}
    try:
        mean = _triple(stated.get("mean", IMAGENET_MEAN))
        std = _triple(stated.get("std", IMAGENET_STD))
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"the backbone {name!r} has pretrained_cfg {stated!r:.200}; expected a mean and a std "
            "of three numbers each, std above 0"
        ) from error
    return mean, std


def _torchvision_names() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


def _torchvision_network(name: str, classes: int, image_size: int | None) -> Network:
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
    known = models.get_model_weights(name)
    preset = known.DEFAULT.transforms()

    def download(weights: str) -> State:
        # Through a model of the library's, which knows the old key names of its own files.
        return dict(models.get_model(name, weights=weights.upper(), progress=False).state_dict())

    mean, std = _triple(preset.mean), _triple(preset.std)
    # those without a classifier have images normalised otherwise
    published = tuple(each.name for each in known if _triple(each.transforms().mean) == mean)
    adapt = partial(adapt_torchvision, model)
    return Network(model, mean, std, (head,), adapt, download, published)


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
        return dict(interpolate_embeddings(model.image_size, model.patch_size, state))
    return state


def _timm_network(name: str, classes: int, image_size: int | None) -> Network:
    import sys

    import timm

    plain = name.removeprefix("timm/")
    options: dict[str, Any] = {"num_classes": classes}
    preset = _constructed(name, None, lambda: timm.get_pretrained_cfg(plain))
    fixed = preset.input_size[1] if preset is not None and preset.fixed_input_size else image_size
    if image_size not in (None, fixed):
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
        return dict(rewrite(dict(state), model)) if rewrite else state

    def download(_: str) -> State:
        state: State = timm.create_model(plain, pretrained=True, **options).state_dict()
        if settings["num_classes"] != classes:  # the second model drew a head of its own
            own = model.state_dict()
            state.update({key: own[key] for key in own if key.rpartition(".")[0] in paths})
        return state

    mean, std = _triple(settings["mean"]), _triple(settings["std"])
    return Network(model, mean, std, paths, adapt, download)


def _constructed(name: str, image_size: int | None, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (Exception, SystemExit) as error:  # the library's or anybody's code
        at = "" if image_size is None else f" for images of {image_size} pixels"
        raise ArgumentError(
            f"{name} cannot be built{at}: {one_line(error)}; choose another size or backbone"
        ) from error


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def guard_group_norm(model: nn.Module) -> None:
    """Have group norms take what lies channel by channel where it needs no gradient.

    Before 2.14, torch ends the process in a group norm's backward pass on a processor where that
    lies with the channels last, as images do, behind frozen layers.
    """
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_channel_by_channel)


def _channel_by_channel(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        each.contiguous() if each.device.type == "cpu" and not each.requires_grad else each
        for each in arguments
    )
