"""Which parts of an image a network's answer rests on: Grad-CAM, or integrated gradients."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from gradsurgery.documents.explanation import Answer
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

    grad-cam: ReLU(Σ_k α_k A_k) of the channels A_k that the last convolution gives, α_k being the
        mean of ∂z_c/∂A_k, enlarged to the image (Selvaraju et al., ICCV 2017).
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
            layer = model.get_submodule(last_convolution(model, images[:1]))
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


def last_convolution(model: nn.Module, image: Float[Tensor, "1 3 height width"]) -> str:
    """The name of the last convolution with a map of more than one place, in the order of a pass.

    Raises `ArgumentError` for a network without, or whose only one cuts the image into patches.
    """
    seen: list[str] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
                seen.append(name)

        return hook

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    handles = [layer.register_forward_hook(note(name)) for name, layer in layers]
    try:
        with unchanged(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) < 2 and not (seen and len(layers) == 1 and _is_small(layers[0][1])):
        raise ArgumentError(
            f"{type(model).__name__} has no convolution late enough for Grad-CAM; use "
            "integrated-gradients"
        )
    return seen[-1]


def best_method(model: nn.Module, image: Float[Tensor, "1 3 height width"]) -> AttributionMethod:
    """Grad-CAM where the network has a convolution for it, else integrated gradients."""
    try:
        last_convolution(model, image)
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
