"""Which parts of an image a network's answer rests on: Grad-CAM, or integrated gradients."""

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from gradsurgery.documents.studies import Answer
from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.model_state import unchanged

AttributionMethod = Literal["grad-cam", "integrated-gradients"]
METHODS: tuple[AttributionMethod, ...] = ("grad-cam", "integrated-gradients")
_STEPS = 32  # of the path integral


class ExplainedImage(NamedTuple):
    """An image, what the model says of it, and how much each pixel speaks for that, in [0, 1]."""

    answer: Answer
    pixels: UInt8[np.ndarray, "height width 3"]
    attribution: Float32[np.ndarray, "height width"]


def attributions(
    model: nn.Module,
    images: Float[Tensor, "batch 3 height width"],
    classes: Int64[Tensor, " batch"],
    method: AttributionMethod,
) -> Float[Tensor, "batch height width"]:
    """How much each pixel speaks for the class, in [0, 1]; all 0 where none does.

    grad-cam: ReLU(Σ_k α_k A_k) of the channels A_k of the last convolution's map, normalised and
        activated, α_k being the mean of ∂z_c/∂A_k, enlarged to the image (Selvaraju et al., ICCV
        2017).
    integrated-gradients: |Σ_rgb (x − x₀) ∫ ∂z_c/∂x along the way from grey x₀ to x| (Sundararajan
        et al., ICML 2017), in 32 steps.
    Each map is divided by its largest value.

    model: in evaluation mode; nothing of it is different afterwards.
    images: normalised.
    classes: c for each image, the position of its logit.

    Raises `ArgumentError` where the method does not fit the network or captum is not installed.
    """
    attr = _captum()
    images = images.detach()
    with unchanged(model), torch.enable_grad():
        if method == "grad-cam":
            layer = model.get_submodule(last_map(model, images[:1]))
            small = attr.LayerGradCam(model, layer).attribute(
                images.clone(), target=classes, relu_attributions=True
            )
            maps = nn.functional.interpolate(
                small.detach(), images.shape[-2:], mode="bilinear", align_corners=False
            )[:, 0]
        else:
            path = attr.IntegratedGradients(model).attribute(
                images.clone(), target=classes, n_steps=_STEPS, internal_batch_size=len(images)
            )
            maps = path.detach().sum(1).abs().float()
    largest = maps.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest, 0.0)


def last_map(model: nn.Module, image: Float[Tensor, "1 3 height width"]) -> str:
    """The name of the layer that gives the map of the last convolution as later layers see it:

    after its normalisation and activation, without which it has the sign of nothing. The last
    layer in the order of a pass, from that convolution on, whose map has as many places, before the
    first with fewer: some networks pool to fewer places and repeat them.

    Raises `ArgumentError` for a network without a convolution whose map has several places, or
    whose only one cuts the image into patches.
    """
    seen: list[tuple[str, nn.Module, torch.Size]] = []

    def note(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
                seen.append((name, layer, output.shape[2:]))

        return hook

    handles = [m.register_forward_hook(note(name, m)) for name, m in model.named_modules() if name]
    try:
        with unchanged(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    at = [place for place, (_, layer, _) in enumerate(seen) if isinstance(layer, nn.Conv2d)]
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    if len(at) < 2 and not (at and len(convolutions) == 1 and _is_small(convolutions[0])):
        raise ArgumentError(
            f"{type(model).__name__} has no convolution late enough for Grad-CAM; use "
            "integrated-gradients"
        )
    passes = Counter(name for name, _, _ in seen)  # one that is used again has several maps
    name, _, places = seen[at[-1]]
    unpooled = takewhile(lambda each: min(each[2]) >= min(places), seen[at[-1] :])
    later = [each for each, _, size in unpooled if size == places and passes[each] == 1]
    return later[-1] if later else name


def best_method(model: nn.Module, image: Float[Tensor, "1 3 height width"]) -> AttributionMethod:
    """Grad-CAM where the network has a convolution for it, else integrated gradients."""
    try:
        last_map(model, image)
    except ArgumentError:
        return "integrated-gradients"
    return "grad-cam"


def embedded_in_plane(
    features: Float[Tensor, "images features"], seed: int
) -> Sequence[tuple[float, float]]:
    """The features in a plane by t-SNE (van der Maaten & Hinton 2008), started from two principal

    components; its perplexity is 30, or a third of the images where there are fewer than 91.
    """
    from sklearn.manifold import TSNE

    if len(features) < 4:
        raise ArgumentError(f"t-SNE needs 4 images or more, found {len(features)}")
    perplexity = min(30.0, (len(features) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed % 2**32)
    placed = plane.fit_transform(features.cpu().double().numpy())
    return [(float(x), float(y)) for x, y in placed]


def _is_small(layer: nn.Conv2d) -> bool:
    """Whether it looks at neighbourhoods, and not at patches side by side."""
    return layer.stride < layer.kernel_size


def _captum() -> Any:
    try:
        from captum import attr
    except ModuleNotFoundError as error:
        raise ArgumentError(
            'attribution needs captum: pip install "gradsurgery[explain]"'
        ) from error
    return attr
