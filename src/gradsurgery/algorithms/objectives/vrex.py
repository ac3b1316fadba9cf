"""Risk extrapolation, V-REx (Krueger et al. 2021)."""

from collections.abc import Sequence
from typing import ClassVar

from torch.nn.functional import cross_entropy

from gradsurgery.algorithms.objectives.base import (
    AnnealedObjective,
    Batch,
    DomainLosses,
    Forward,
    values_of,
)
from gradsurgery.hyperparameters import Hyperparameter


class VREx(AnnealedObjective):
    """mean_d L_d + w·mean_d (L_d − L̄)², the mean and the variance of the domains' risks.

    Loss number d is L_d + w (L_d − L̄)². L̄ is detached: its derivative vanishes from the mean,
    since Σ_d (L_d − L̄) = 0. w = 1 for the first `anneal` steps and `penalty` from then on, when
    the optimiser's state is dropped.

    Source: Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation (REx)",
    ICML 2021, eq. 8; the annealing as in DomainBed.
    """

    name: ClassVar[str] = "vrex"
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("penalty", 10.0, "weight of the risks' variance after annealing"),
        Hyperparameter("anneal", 500, "steps with weight 1 before that"),
    )

    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        """Risk plus weighted squared distance from the mean risk."""
        weight = self.weight(step)
        logits = forward([images for images, _ in batches])
        risks = [cross_entropy(z, y) for z, (_, y) in zip(logits, batches, strict=True)]
        mean = values_of(risks).mean()
        while risks:
            risk = risks.pop(0)
            yield risk + weight * (risk - mean) ** 2
