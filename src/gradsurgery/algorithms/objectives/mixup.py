"""Mixup of images between domains (Zhang et al. 2018; Yan et al. 2020)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward
from gradsurgery.algorithms.objectives.base import Batch, DomainLosses, Objective
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter


class Mixup(Objective):
    """The domains, in a random order, are paired in a ring; the loss of the pair (i, j) is

        λ CE(f(x), y_i) + (1 − λ) CE(f(x), y_j),  x = λ x_i + (1 − λ) x_j,  λ ~ Beta(α, α),

    with one λ per pair. Loss number d is that of the pair in which domain d comes first.

    Source: Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization", 2020 (Mixup).
    """

    name = "mixup"
    smooths_labels = True
    weighs_classes = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "alpha", 0.2, "shape α of the Beta distribution of λ", open_low=True, source=DOMAINBED
        ),
    )
    minimum_domains = 2

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        shapes = [list(images.shape) for images, _ in batches]
        if any(shape != shapes[0] for shape in shapes):
            raise ArgumentError(
                "mixup mixes the images of two domains one by one, found batches of shapes "
                f"{', '.join(map(str, shapes))}; give every domain as many images"
            )
        ring = random_ring(len(batches), self.generator)
        shares = [beta(self.values["alpha"], self.generator) for _ in ring]
        mixed = [
            share * batches[i][0] + (1 - share) * batches[j][0]
            for (i, j), share in zip(ring, shares, strict=True)
        ]
        logits = forward(mixed, of=ring)
        for (i, j), share in zip(ring, shares, strict=True):
            z = next(logits)
            first, second = self.risk(z, batches[i][1]), self.risk(z, batches[j][1])
            yield share * first + (1 - share) * second


def random_ring(length: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """0 … length − 1, each with the one that follows it in a random order closed to a ring."""
    order = torch.randperm(length, generator=generator, device=generator.device).tolist()
    return sorted(zip(order, [*order[1:], *order[:1]], strict=True))


def beta(alpha: float, generator: torch.Generator) -> float:
    """λ ~ Beta(α, α): X / (X + Y) with X, Y ~ Gamma(α).

    In logarithms, since Gamma(α) underflows for small α: Gamma(α) = Gamma(α + 1)·U^(1/α).
    """
    shape = torch.full((2,), alpha + 1, dtype=torch.float64, device=generator.device)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = torch.rand(2, generator=generator, dtype=torch.float64, device=generator.device)
    return (gamma.log() + uniform.log() / alpha).softmax(0)[0].item()
