"""Group distributionally robust optimisation (Sagawa et al. 2020)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn.functional import cross_entropy

from gradsurgery.algorithms.objectives.base import (
    Batch,
    DomainLosses,
    Forward,
    Objective,
    values_of,
)
from gradsurgery.hyperparameters import Hyperparameter


class GroupDRO(Objective):
    """Σ_d q_d L_d, where q follows the largest losses:

        q_d ← q_d exp(η L_d), normalised to a sum of 1, detached, from all ones.

    Loss number d is D q_d L_d, so that their mean is the objective. q is the state.

    Source: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
    algorithm 1.
    """

    name: ClassVar[str] = "group-dro"
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("eta", 0.01, "step size η of the domains' weights q"),
    )
    state_names: ClassVar[tuple[str, ...]] = ("q",)

    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        """The weighted cross-entropies; q needs all of them before the first."""
        logits = forward([images for images, _ in batches])
        risks = [cross_entropy(z, y) for z, (_, y) in zip(logits, batches, strict=True)]
        values = values_of(risks)
        grown = self.remembered("q", torch.ones_like(values)).log() + self.values["eta"] * values
        self.state["q"] = q = grown.softmax(0)  # in logarithms, where no exp overflows
        while risks:
            yield len(batches) * q[-len(risks)] * risks.pop(0)
