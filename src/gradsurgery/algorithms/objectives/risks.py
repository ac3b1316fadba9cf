"""Objectives that weigh the domains' risks, the mean cross-entropies L_d of their batches."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward
from gradsurgery.algorithms.objectives.base import AnnealedObjective, Batch, DomainLosses, Objective
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter


class VREx(AnnealedObjective):
    """mean_d L_d + w·mean_d (L_d − L̄)², the mean and the variance of the domains' risks.

    Loss number d is L_d + w (L_d − L̄)². L̄ is detached: its derivative vanishes from the mean,
    since Σ_d (L_d − L̄) = 0. w = 1 for the first `anneal` steps and `penalty` from then on, when
    the optimiser's state is dropped.

    Source: Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation (REx)",
    ICML 2021, eq. 8; the annealing as in DomainBed.
    """

    name: ClassVar[str] = "vrex"
    smooths_labels: ClassVar[bool] = True
    weighs_classes: ClassVar[bool] = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "penalty", 10.0, "weight of the risks' variance after annealing", source=DOMAINBED
        ),
        Hyperparameter("anneal", 500, "steps with weight 1 before that", source=DOMAINBED),
    )

    stage = AnnealedObjective.stage

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        weight = self.weight(step)
        risks = risks_of(self, forward, batches)
        mean = forward.values_of(risks).mean()
        while risks:
            risk = risks.pop(0)
            yield risk + weight * (risk - mean) ** 2


class GroupDRO(Objective):
    """Group distributionally robust optimisation: Σ_d q_d L_d, where q follows the largest losses:

        q_d ← q_d exp(η L_d), normalised to a sum of 1, detached, from all ones.

    Loss number d is D q_d L_d, so that their mean is the objective. q is the state.

    Source: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
    algorithm 1.
    """

    name: ClassVar[str] = "group-dro"
    smooths_labels: ClassVar[bool] = True
    weighs_classes: ClassVar[bool] = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("eta", 0.01, "step size η of the domains' weights q", source=DOMAINBED),
    )
    state_names: ClassVar[tuple[str, ...]] = ("q",)

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        risks = risks_of(self, forward, batches)  # q needs all of them before the first
        values = forward.values_of(risks)
        grown = self.remembered("q", torch.ones_like(values)).log() + self.values["eta"] * values
        self.state["q"] = q = grown.softmax(0)  # in logarithms, where no exp overflows
        while risks:
            yield len(batches) * q[-len(risks)] * risks.pop(0)


def risks_of(objective: Objective, forward: Forward, batches: Sequence[Batch]) -> list[Tensor]:
    """The domains' risks, all graphs alive."""
    logits = forward([images for images, _ in batches])
    return [objective.risk(z, y) for z, (_, y) in zip(logits, batches, strict=True)]
