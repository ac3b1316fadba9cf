"""What a model's answers rest on, image by image, and what its features tell apart."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from gradsurgery.algorithms.forward import Forward, NormalizedRows
from gradsurgery.data import ImageSet, normalize
from gradsurgery.data.pixels import gather
from gradsurgery.documents.studies import Answer, Explanation, ExplanationOptions, Place
from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.model_state import unchanged
from gradsurgery.seeds import derive_seed, random_order

AttributionMethod = Literal["grad-cam", "integrated-gradients"]
Progress = Callable[[int, int], object]
"""Called with how many images are done, and of how many."""
_STEPS = 32  # of the path integral
_BATCH = 32


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
    attr = captum_attributions()
    images = images.detach()
    with unchanged(model), torch.enable_grad(), NormalizedRows():
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
    """The name of the layer that gives the map of the last convolution as later layers see it.

    That is after its normalisation and activation, without which it has the sign of nothing: the
    last layer in the order of a pass, from that convolution on, whose map has as many places,
    before the first with fewer, as some networks pool to fewer places and repeat them.

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
    # A single one must look at neighbourhoods, and not at patches side by side.
    overlaps = len(convolutions) == 1 and convolutions[0].stride < convolutions[0].kernel_size
    if len(at) < 2 and not (at and overlaps):
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
    """The features in a plane by t-SNE (van der Maaten & Hinton 2008).

    It starts from two principal components; its perplexity is 30, or a third of the images where
    there are fewer than 91.
    """
    from sklearn.manifold import TSNE

    if len(features) < 4:
        raise ArgumentError(f"t-SNE needs 4 images or more, found {len(features)}")
    perplexity = min(30.0, (len(features) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed % 2**32)
    placed = plane.fit_transform(features.cpu().double().numpy())
    return [(float(x), float(y)) for x, y in placed]


def captum_attributions() -> Any:
    """`captum.attr`; raises `ArgumentError` where captum is not installed."""
    try:
        from captum import attr
    except ModuleNotFoundError as error:
        raise ArgumentError(
            'attribution needs captum: pip install "gradsurgery[explain]"'
        ) from error
    return attr


class Subject(NamedTuple):
    """The model that is explained.

    name: what to call it. network: in evaluation mode. mean, std: of its images' channels.
    """

    name: str
    network: nn.Module
    classes: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]


def explain_domains(
    subject: Subject,
    images: ImageSet,
    chosen: Mapping[str, Int64[np.ndarray, " images"]],
    options: ExplanationOptions,
    *,
    target: str | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Explanation, list[ExplainedImage]]:
    """Explain some answers in every domain, and map the features of many images.

    Half of what is shown of a domain is wrong answers, where there are so many. Which images are
    taken depends on `options.seed` alone.

    chosen: positions in `images`, by domain. target: the domain that was held out.
    """
    if list(images.classes) != list(subject.classes):
        raise ArgumentError(
            f"{images.name} has the classes {', '.join(images.classes):.120} and {subject.name} "
            f"{', '.join(subject.classes):.120}; explain it on images of its own classes"
        )
    most = max(options.points // max(len(chosen), 1), options.per_domain)
    drawn = {domain: _drawn(here, most, domain, options) for domain, here in chosen.items()}
    positions = np.concatenate(list(drawn.values()))
    probabilities, features = _answered(subject, images.images, positions, progress)
    answers = [
        _answer(subject, row, images.identities[at], images, int(at))
        for row, at in zip(probabilities, positions, strict=True)
    ]
    shown = _shown(answers, list(drawn), options.per_domain)
    by, explained = _explained(
        subject, gather(images.images, positions[shown]), [answers[at] for at in shown], options
    )
    spots = embedded_in_plane(features, derive_seed(options.seed, "map of features"))
    places = [
        Place(domain=a.domain or "", label=a.label or "", predicted=a.predicted, x=x, y=y)
        for a, (x, y) in zip(answers, spots, strict=True)
    ]
    explanation = Explanation(
        model=subject.name,
        data=images.name,
        target=target,
        by=by,
        classes=list(subject.classes),
        domains=list(drawn),
        shown=[each.answer for each in explained],
        places=places,
    )
    return explanation, explained


def explain_pictures(
    subject: Subject,
    pixels: UInt8[Tensor, "images height width 3"],
    names: Sequence[str],
    options: ExplanationOptions,
) -> tuple[Explanation, list[ExplainedImage]]:
    """Explain the answers to pictures of which nothing is known but their names."""
    probabilities, _ = _pass(subject, pixels)
    answers = [_answer(subject, row, name) for row, name in zip(probabilities, names, strict=True)]
    by, explained = _explained(subject, pixels, answers, options)
    explanation = Explanation(
        model=subject.name,
        data="pictures",
        by=by,
        classes=list(subject.classes),
        domains=[],
        shown=answers,
    )
    return explanation, explained


def _drawn(
    members: Int64[np.ndarray, " images"], most: int, domain: str, options: ExplanationOptions
) -> Int64[np.ndarray, " images"]:
    """Up to `most` of them, in an order of chance."""
    order = random_order(len(members), options.seed, "explanation", domain)
    chosen: Int64[np.ndarray, " images"] = members[order[:most]]
    return chosen


def _answered(
    subject: Subject,
    images: UInt8[np.ndarray, "all height width 3"],
    positions: Int64[np.ndarray, " images"],
    progress: Progress,
) -> tuple[Float[Tensor, "images classes"], Float[Tensor, "images features"]]:
    """Probabilities and features of the images at these positions."""
    parts = []
    for start in range(0, len(positions), _BATCH):
        parts.append(_pass(subject, gather(images, positions[start : start + _BATCH])))
        progress(min(start + _BATCH, len(positions)), len(positions))
    probabilities, features = zip(*parts, strict=True)
    return torch.cat(probabilities), torch.cat(features)


@torch.no_grad()
def _pass(
    subject: Subject, pixels: UInt8[Tensor, "images height width 3"]
) -> tuple[Float[Tensor, "images classes"], Float[Tensor, "images features"]]:
    """Probabilities, and what goes into the last linear layer, else the logits."""
    images = _normalized(subject, pixels)
    forward = Forward(subject.network)
    try:
        ((features, logits),) = forward.with_head_inputs([images])
    except ArgumentError:
        (logits,) = forward([images])
        features = logits
    return logits.softmax(1).cpu(), features.flatten(1).float().cpu()


def _normalized(
    subject: Subject, pixels: UInt8[Tensor, "images height width 3"]
) -> Float[Tensor, "images 3 height width"]:
    device = next(subject.network.parameters()).device
    return normalize(pixels.to(device), subject.mean, subject.std)


def _answer(
    subject: Subject,
    probabilities: Float[Tensor, " classes"],
    identity: str,
    images: ImageSet | None = None,
    position: int = 0,
) -> Answer:
    best = int(probabilities.argmax())
    answer = Answer(
        identity=identity, predicted=subject.classes[best], probability=float(probabilities[best])
    )
    if images is not None:
        answer.domain = images.domains[images.domain[position]]
        answer.label = images.classes[images.label[position]]
    return answer


def _shown(answers: Sequence[Answer], domains: Sequence[str], count: int) -> list[int]:
    """Positions of `count` answers a domain, right ones first, half of them wrong if there are."""
    chosen: list[int] = []
    for domain in domains:
        here = [at for at, answer in enumerate(answers) if answer.domain == domain]
        wrong = [at for at in here if answers[at].label != answers[at].predicted]
        right = [at for at in here if answers[at].label == answers[at].predicted]
        many = min(len(wrong), max(count // 2, count - len(right)))
        chosen += right[: count - many] + wrong[:many]
    return chosen


def _explained(
    subject: Subject,
    pixels: UInt8[Tensor, "images height width 3"],
    answers: Sequence[Answer],
    options: ExplanationOptions,
) -> tuple[AttributionMethod, list[ExplainedImage]]:
    """How they are explained, and each answer with its picture and its map."""
    images = _normalized(subject, pixels)
    by = best_method(subject.network, images[:1]) if options.by == "auto" else options.by
    predicted = torch.tensor([subject.classes.index(a.predicted) for a in answers])
    maps = [
        attributions(subject.network, part, labels, by).float().cpu()
        for part, labels in zip(
            images.split(_BATCH), predicted.to(images.device).split(_BATCH), strict=True
        )
    ]
    rows = zip(answers, pixels.cpu().numpy(), torch.cat(maps).numpy(), strict=True)
    return by, [ExplainedImage(*row) for row in rows]
