"""Group distributionally robust optimisation (Sagawa et al. 2020)."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradsurgery.algorithms.hyperparameters import Hyperparameter
from gradsurgery.algorithms.objectives.base import Batch, Forward, Objective, Surroundings


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

    def __init__(self, surroundings: Surroundings, **given: Any) -> None:
        super().__init__(surroundings, **given)
        self.q: Tensor | None = None

    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> Iterator[Tensor]:
        """The weighted cross-entropies; q needs all of them before the first."""
        logits = forward([images for images, _ in batches])
        risks = [cross_entropy(z, y) for z, (_, y) in zip(logits, batches, strict=True)]
        values = torch.stack([risk.detach() for risk in risks]).float()
        q = torch.ones_like(values) if self.q is None else self.q.to(values.device)
        q = q * (self.values["eta"] * values).exp()
        self.q = q / q.sum()
        while risks:
            yield len(batches) * self.q[-len(risks)] * risks.pop(0)

    def state_dict(self) -> dict[str, Tensor]:
        """q, once there is one."""
        return {} if self.q is None else {"q": self.q}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set q."""
        self.q = state.get("q")
