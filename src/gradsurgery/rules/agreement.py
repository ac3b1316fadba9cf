"""Agr-Sum and Agr-Rand: keep what the domains agree on (Mansilla et al. 2021, equations 2 to 4).

    Φ_n = 1 if sign(g_1n) = sign(g_2n) = … = sign(g_Dn), else 0

The domains are folded one at a time into a running total, in which NaN marks a conflict: it stays
NaN whatever is added, needs no second buffer, and tells "agrees at zero" from "conflicts". The
gradients themselves have to be finite, which callers check beforehand.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels import compiled as kernel
from gradsurgery.kernels.network import Combination
from gradsurgery.rules.base import (
    NARROW,
    ComponentwiseRule,
    Consensus,
    State,
    divided,
    pieces,
    reduction,
    scratch,
)

_SOURCE = "Mansilla et al. 2021"


class AgreementRule(ComponentwiseRule):
    """A rule that sums where the signs agree, and decides in `finish` what a conflict becomes."""

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (reduction("sum", _SOURCE),)
    unanimous = True

    def start(self, gradient: Float[Tensor, " params"]) -> State:
        """The running total, in which NaN will mark conflicts."""
        return (gradient,)

    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """The running total after one more domain."""
        (total,) = state
        fold_agreement(total, gradient)
        return state


class AgrSum(AgreementRule):
    """g*_n = Σ_d g_dn where Φ_n = 1, and 0 where Φ_n = 0.

    Φ_n = 1 where the sign of g_dn (−1, 0 or +1) is the same in every domain d.

    reduction: "sum", as published, or "mean", which divides the update by D.

    Source: Mansilla et al., "Domain Generalization via Gradient Surgery", ICCV 2021, eq. 2 and 3.

    >>> AgrSum()(torch.tensor([[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]]))
    tensor([4., 0., 0.])
    """

    name = "agr-sum"

    @override
    def combination(self, domains: int) -> Combination | None:
        return Combination("agr-sum", (float(self.divisor(domains)),))

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The totals with conflicts at zero."""
        totals = [total for (total,) in states]
        counts, zeros = torch.stack([clear_marks(total) for total in totals]).unbind(1)
        return Consensus(divided(totals, self.divisor(domains)), counts, zeros)

    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        """The update for stored gradients, in one pass over them."""
        self.check_matrix(gradients)
        if gradients.dtype not in NARROW and gradients.device.type == "cpu":
            gradients = gradients.detach()
            update = torch.empty_like(gradients[0])
            if agreement_sum(gradients, out=update):
                return divided([update], self.divisor(len(gradients)))[0]
        return super().__call__(gradients)


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
            source=f"{_SOURCE}, eq. 2",
        ),
    )

    @override
    def combination(self, domains: int) -> Combination | None:
        constants = float(self.divisor(domains)), float(self.values["zero_agrees"])
        return Combination("agr-rand", constants, draws=True)

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The totals with noise where they conflict."""
        totals = [total for (total,) in states]
        sizes, counts, zeros = torch.stack([survey_marks(total) for total in totals]).unbind(1)
        agree = counts + zeros if self.values["zero_agrees"] else counts
        sigma = sizes.sum() / agree.sum().clamp_min(1)
        for total in totals:
            for (running,) in pieces(total):
                noise = self.random.normal_like(running)
                self._fill(running, noise, sigma, self.divisor(domains))
        return Consensus(totals, counts, zeros)

    def _fill(
        self,
        total: Float[Tensor, " params"],
        noise: Float[Tensor, " params"],
        sigma: Float[Tensor, ""],
        divisor: int,
    ) -> None:
        """Put noise where the domains conflict, and divide."""
        zero_agrees = self.values["zero_agrees"]
        if (name := kernel.name_for("fill_marks", total, noise)) is not None:
            kernel.fill_marks(name, total, noise, sigma.item(), divisor, zero_agrees=zero_agrees)
            return
        conflict = total.isnan() if zero_agrees else total.isnan() | (total == 0)
        total.copy_(torch.where(conflict, noise.mul_(sigma), total).div_(divisor))


def fold_agreement(total: Float[Tensor, " params"], gradient: Float[Tensor, " params"]) -> None:
    """Add `gradient` to `total` where the signs are equal, and set NaN where they are not."""
    if (name := kernel.name_for("fold_agreement", total, gradient)) is not None:
        kernel.fold_agreement(name, total, gradient)
        return
    first, second = scratch(total, 2)
    for running, added in pieces(total, gradient):
        same, sign = first[: len(added)], second[: len(added)]
        torch.sign(running, out=same)
        torch.sign(added, out=sign)
        same.eq_(sign)
        same.div_(same)  # 1 where the signs are equal, 0/0 = NaN where they are not
        running.add_(added).mul_(same)


def clear_marks(total: Float[Tensor, " params"]) -> Float[Tensor, "2"]:
    """Set the conflicts to zero; how many components agree and are not zero, and how many are."""
    if (name := kernel.name_for("resolve_marks", total)) is not None:
        return torch.tensor(kernel.resolve_marks(name, total), dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.float64, device=total.device)
    for (running,) in pieces(total):
        zeros = (running == 0).sum()
        counts[0] += len(running) - running.isnan().sum() - zeros
        counts[1] += zeros
        torch.nan_to_num(running, nan=0.0, posinf=torch.inf, neginf=-torch.inf, out=running)
    return counts


def agreement_sum(
    gradients: Float[Tensor, "domains params"], *, out: Float[Tensor, " params"]
) -> bool:
    """Write equation 3 for the stored `gradients` into `out`; False where a sum is not finite.

    A component is kept where min_d g_dn > 0 or max_d g_dn < 0; "all zero" sums to zero anyway.
    """
    if (name := kernel.name_for("agreement_sum", gradients, out)) is not None:
        return kernel.agreement_sum(name, gradients, out)
    first, second = scratch(out, 2)
    for rows, total in pieces(gradients, out):
        lowest, highest = first[: len(total)], second[: len(total)]
        torch.sum(rows, 0, out=total)
        torch.amin(rows, 0, out=lowest)
        torch.amax(rows, 0, out=highest)
        total.mul_(lowest.gt_(0).add_(highest.lt_(0)))
        # 0 × NaN and 0 × Inf are NaN: what is not finite does not get lost in the mask
        if not total.sum().isfinite():
            return False
    return True


def survey_marks(total: Float[Tensor, " params"]) -> Float[Tensor, "3"]:
    """Σ |t_n| where t_n is not NaN; how many components are not zero either, and are zero."""
    if (name := kernel.name_for("survey_marks", total)) is not None:
        return torch.tensor(kernel.survey_marks(name, total), dtype=torch.float64)
    seen = torch.zeros(3, dtype=torch.float64, device=total.device)
    for (running,) in pieces(total):
        zeros = (running == 0).sum()
        seen[0] += running.abs().nansum(dtype=torch.float64)
        seen[1] += len(running) - running.isnan().sum() - zeros
        seen[2] += zeros
    return seen
