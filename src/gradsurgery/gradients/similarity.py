"""Gradients of samples within a domain against across domains: one measurement."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss

from gradsurgery.backbones import Backbone, keeping_modes
from gradsurgery.data import ImageSet, normalize
from gradsurgery.data.pixels import gather
from gradsurgery.gradients.gradient_gram import gradient_gram
from gradsurgery.seeds import named_generator

Indices = Int64[np.ndarray, " samples"]


class DrawnSamples(NamedTuple):
    """Images of one class: per domain their positions in the set, and who is left out and why."""

    chosen: dict[str, Indices]
    skipped: dict[str, str]


def draw_samples(
    images: ImageSet,
    pool: Mapping[str, Indices],
    *,
    label: int,
    domains: Sequence[str],
    count: int,
    seed: int,
    step: int,
) -> DrawnSamples:
    """Draw `count` different images of class `label` from each domain's `pool`.

    A domain that has fewer of them is left out. The draw depends on (seed, domain, step) alone.

    Args:
        images: the set.
        pool: per domain, positions in `images`: its training images.
        label: position of the class in `images.classes`.
        domains: whose images to draw.
        count: images per domain.
        seed: of the run.
        step: of the run.
    """
    chosen: dict[str, Indices] = {}
    skipped: dict[str, str] = {}
    for domain in domains:
        members = pool[domain][images.label[pool[domain]] == label]
        if len(members) < count:
            name = images.classes[label]
            skipped[domain] = f"{len(members)} training images of class {name}, {count} needed"
            continue
        generator = named_generator(seed, "similarity", domain, step)
        order = torch.randperm(len(members), generator=generator).numpy()
        chosen[domain] = members[order[:count]]
    return DrawnSamples(chosen, skipped)


def sample_cosines(
    backbone: Backbone, images: ImageSet, chosen: Mapping[str, Indices]
) -> Float[Tensor, "domains domains"]:
    """Mean cosines of the samples' gradients by pairs of domains, in evaluation mode.

    The gradients are those of each sample's cross-entropy by all trained parameters. Entry (d, e)
    is the mean over the pairs of a sample of domain d and one of e; see `mean_cosines`.

    Raises `NonFiniteError` as `gradient_gram` does.
    """
    x, y = labelled_images(backbone, images, np.concatenate(list(chosen.values())))
    with evaluating(backbone.model):
        gram = gradient_gram(backbone.model, CrossEntropyLoss(reduction="none"), x, y)
    cosines = gram.cosines()
    cosines[gram.total.diagonal() <= 0] = torch.nan  # a zero gradient has no direction
    sizes = [len(indices) for indices in chosen.values()]
    membership = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return mean_cosines(cosines, membership)


def mean_cosines(
    cosines: Float[Tensor, "samples samples"], domain: Int64[Tensor, " samples"]
) -> Float[Tensor, "domains domains"]:
    """The mean of cos_ij over i in domain d and j in domain e, a sample never with itself.

    cosines: of all pairs of samples; pairs where one is NaN do not count.
    domain: whose sample it is, numbered from 0.

    Returns a symmetric matrix, NaN where there is no pair.

    >>> cosines = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.0]])
    >>> mean_cosines(cosines, torch.tensor([0, 0, 1]))
    tensor([[0.5000, 0.1000],
            [0.1000,    nan]])
    """
    others = cosines.clone().fill_diagonal_(torch.nan)
    others = torch.where(others.isnan() | others.mT.isnan(), torch.nan, others)
    members = [domain == d for d in range(int(domain.max()) + 1)]
    rows = [torch.stack([others[d][:, e].nanmean() for e in members]) for d in members]
    means = torch.stack(rows)
    return (means + means.mT) / 2  # else the order of summation shows in the last bit


def within_and_across(
    means: Float[Tensor, "domains domains"],
) -> tuple[float | None, float | None]:
    """The mean over the domains, and the mean over the pairs of different domains.

    Every domain counts the same, and every pair of domains. None where there is nothing to average.

    >>> within_and_across(torch.tensor([[0.5, 0.25], [0.25, 1.0]]))
    (0.75, 0.25)
    """
    rows, columns = torch.triu_indices(len(means), len(means), offset=1)
    found = [float(values.nanmean()) for values in (means.diagonal(), means[rows, columns])]
    within, across = (None if np.isnan(value) else value for value in found)
    return within, across


def labelled_images(
    backbone: Backbone, images: ImageSet, indices: Int64[np.ndarray, " batch"]
) -> tuple[Float[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]:
    """The normalised images at `indices` and their labels, on the device of the backbone."""
    device = next(backbone.model.parameters()).device
    pixels = gather(images.images, indices).to(device)
    labels = torch.from_numpy(images.label[indices]).to(device)
    return normalize(pixels, backbone.mean, backbone.std), labels


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout, and batch normalisation by running statistics; then as it was before."""
    with keeping_modes(model):
        model.eval()
        yield
