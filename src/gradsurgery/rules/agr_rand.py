"""Agr-Rand: noise where the domains conflict (Mansilla et al. 2021, equation 4)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels.network import Combination
from gradsurgery.rules.agr_sum import AgreementRule
from gradsurgery.rules.base import Consensus, State
from gradsurgery.rules.pieces import pieces


class AgrRand(AgreementRule):
    """g*_n = Σ_d g_dn where Φ_n = 1, and a draw from N(0, σ²) where Φ_n = 0.

    σ = mean of |g*_n| over all components n of the whole network with Φ_n = 1, and 0 where no
    component agrees.

    reduction: "sum", as published, or "mean", which divides the update by D.
    zero_agrees: whether a component that is zero in every domain agrees, as in equation 2. False,
        as in the published code, gives it noise and leaves it out of σ.
    generator: draws the noise; without one the rule has its own, seeded with 0.

    Source: Mansilla et al., "Domain Generalization via Gradient Surgery", ICCV 2021, eq. 2 and 4.

    >>> AgrRand()(torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]))  # no conflict, no noise
    tensor([4., 6., 0.])
    """

    name = "agr-rand"
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        *AgreementRule.hyperparameters,
        Hyperparameter(
            "zero_agrees",
            True,
            "whether a component that is zero in every domain agrees",
            source="Mansilla et al. 2021, eq. 2",
        ),
    )

    @override
    def combination(self, domains: int) -> Combination | None:
        constants = float(self.divisor(domains)), float(self.values["zero_agrees"])
        return Combination("agr-rand", constants, draws=True)

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The totals with noise where they conflict."""
        totals = [total for (total,) in states]
        zeros = torch.stack([(total == 0).sum() for total in totals])
        if not self.values["zero_agrees"]:
            for total in totals:
                total.masked_fill_(total == 0, torch.nan)
        sigma, counts = scale_of_noise(totals)
        counts -= zeros if self.values["zero_agrees"] else 0
        divisor = self.divisor(domains)
        for total in totals:
            for (running,) in pieces(total):
                noise = self.random.normal_like(running).mul_(sigma)
                running.copy_(torch.where(running.isnan(), noise, running).div_(divisor))
        return Consensus(totals, counts, zeros)


def scale_of_noise(
    totals: Sequence[Float[Tensor, " _"]],
) -> tuple[Float[Tensor, ""], Float[Tensor, " states"]]:
    """σ of equation 4 and the numbers of agreeing components; NaN marks a conflict in `totals`."""
    magnitude = torch.zeros((), dtype=torch.float64, device=totals[0].device)
    counts = torch.zeros(len(totals), dtype=torch.float64, device=totals[0].device)
    for position, total in enumerate(totals):
        for (running,) in pieces(total):
            counts[position] += len(running) - running.isnan().sum()
            magnitude += running.abs().nansum(dtype=torch.float64)
    return magnitude / counts.sum().clamp_min(1), counts
