"""AND-mask and SAND-mask: update by how many domains agree in the sign of a component."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int16
from torch import Tensor
from typing_extensions import override

from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter
from gradsurgery.kernels.network import Combination
from gradsurgery.rules.base import ComponentwiseRule, Consensus, State, divided, pieces, reduction

RESCALE = Hyperparameter(
    "rescale", False, "divide by the mean of the mask, tensor by tensor", source="the formula"
)


class ANDMask(ComponentwiseRule):
    """g*_n = (1/D) Σ_d g_dn where |(1/D) Σ_d sign(g_dn)| ≥ τ, and 0 elsewhere.

    tau: the threshold τ in [0, 1]: 0 keeps everything, 1 keeps what all domains agree on, which
        makes it the mask of Agr-Sum. Default 1, as in DomainBed.
    reduction: "mean", as the paper and DomainBed average the masked gradients, or "sum", as
        Agr-Sum does.
    rescale: divide the update of each parameter tensor by the fraction of its components that are
        kept, as DomainBed does so that a sparse mask does not shorten the step (its code adds 1e-10
        to the fraction, against 0/0). The paper's formula has no such factor, hence off. A matrix
        counts as one tensor.

    The fraction of agreement reported is that of the components kept. Memory: one gradient and 16
    bits per component for the signs, whatever D is.

    Source: Parascandolo et al., "Learning explanations that are hard to vary", ICLR 2021, section
    3; DomainBed's `ANDMask`.

    >>> gradients = torch.tensor([[1.0, -2.0, 3.0], [3.0, -4.0, 3.0], [2.0, 3.0, -9.0]])
    >>> ANDMask()(gradients), ANDMask(tau=1 / 3)(gradients)
    (tensor([2., 0., 0.]), tensor([ 2., -1., -1.]))
    """

    name = "and-mask"

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("tau", 1.0, "threshold τ of the agreement", high=1.0, source=DOMAINBED),
        reduction("mean", DOMAINBED),
        RESCALE,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.unanimous = self.values["tau"] == 1

    @override
    def combination(self, domains: int) -> Combination | None:
        constants = float(self.divisor(domains)), float(self._needed(domains))
        return Combination("and-mask", constants, rescale=self.values["rescale"])

    def start(self, gradient: Float[Tensor, " params"]) -> State:
        """The running total and the sum of the signs."""
        return gradient, signs_of(gradient)

    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """Both sums after one more domain."""
        total, signs = state
        total.add_(gradient)
        add_signs(signs, gradient)
        return state

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The totals where enough signs are equal."""
        needed = self._needed(domains)
        updates, counts = [], []
        for total, signs in states:
            kept, zeros = torch.zeros(2, dtype=torch.float64, device=total.device)
            for running, agreeing in pieces(total, signs):
                zeros += (agreeing == 0).sum()
                dropped = agreeing.bitwise_right_shift_(1).abs_() < needed
                running.masked_fill_(dropped, 0.0)
                kept += len(running) - dropped.sum()
            updates += divided([total], self.divisor(domains))
            if self.values["rescale"]:
                divide_by_mean(total, kept)
            counts.append(torch.stack([kept if needed > 0 else kept - zeros, zeros]))
        return Consensus(updates, *torch.stack(counts).unbind(1))

    def _needed(self, domains: int) -> int:
        """An integer to compare with: no rounding of τ·D decides."""
        tau: float = self.values["tau"]
        return math.ceil(tau * domains - 1e-9)


class SANDMask(ComponentwiseRule):
    """g*_n = m_n (1/D) Σ_d g_dn with m_n = max(0, tanh(k/σ²_n (|(1/D) Σ_d sign(g_dn)| − τ))).

    σ²_n is the variance of g_1n … g_Dn (with D − 1); where it is 0, m_n is 1 above the threshold
    and 0 elsewhere.

    tau: the threshold τ in [0, 1). DomainBed's default of 1 trains nothing: the agreement is never
        above 1, so every m_n is 0; it is refused here. The default, 0.5, is the middle of the range
        DomainBed searches; with up to four domains all have to agree in sign.
    k: the steepness, above 0. Default 10, as in DomainBed.
    reduction: "mean", as published, or "sum".
    rescale: divide the update of each parameter tensor by the mean of its m_n, however small, as
        DomainBed does, whose code adds 1e-10 to the mean; off, as in the formula. A matrix counts
        as one tensor.

    σ² is absolute: s times the gradients need s² times the k, also where a gradient scaler
    multiplies the losses. The agreement reported is the fraction of components with m_n > 0.
    Memory: mean, squared deviations and a 16-bit count of signs per component, whatever D is.

    Source: Shahtalebi et al., "SAND-mask: An Enhanced Gradient Masking Strategy for the Discovery
    of Invariances in Domain Generalization", 2021, section 3; DomainBed's `SANDMask`.

    >>> SANDMask()(torch.tensor([[1.0, 2.0, 30.0], [1.0, -2.0, 10.0]]))
    tensor([1.0000, 0.0000, 0.4999])
    """

    name = "sand-mask"
    scale_equivariant = False

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "tau",
            0.5,
            "threshold τ of the agreement",
            high=1.0,
            open_high=True,
            source="the middle of DomainBed's range",
        ),
        Hyperparameter("k", 10.0, "steepness k of the mask", open_low=True, source=DOMAINBED),
        reduction("mean", DOMAINBED),
        RESCALE,
    )

    @override
    def combination(self, domains: int) -> Combination | None:
        divisor = 1 if self.values["reduction"] == "mean" else 1 / domains
        constants = float(divisor), float(self.values["tau"]), float(self.values["k"])
        return Combination("sand-mask", constants, rescale=self.values["rescale"])

    @override
    def precision(self, dtype: torch.dtype, size: float) -> torch.dtype:
        return super().precision(dtype, 4 * size * size)  # of the squared deviations

    def start(self, gradient: Float[Tensor, " params"]) -> State:
        """Mean, squared deviations, sum of signs, and the number of domains seen."""
        return gradient, torch.zeros_like(gradient), signs_of(gradient), torch.ones(())

    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """Welford's update, which does not cancel as a sum of squares would."""
        mean, deviations, signs, seen = state
        seen += 1
        for running, spread, added in pieces(mean, deviations, gradient):
            before = added - running
            running.add_(before, alpha=1 / seen.item())
            spread.addcmul_(before, added - running)
        add_signs(signs, gradient)
        return state

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The means weighed by their masks."""
        updates, passing = [], []
        for mean, deviations, signs, _ in states:
            total, count, zeros = torch.zeros(3, dtype=torch.float64, device=mean.device)
            for running, spread, agreement in pieces(mean, deviations, signs):
                zeros += (agreement == 0).sum()
                share = agreement.bitwise_right_shift_(1).abs_().to(spread.dtype).div_(domains)
                margin = share.sub_(self.values["tau"]).mul_(self.values["k"])
                mask = margin.div_(spread.div_(domains - 1)).tanh_()
                mask.clamp_(min=0).nan_to_num_(nan=0)  # 0/0: no spread, exactly at the threshold
                running.mul_(mask)
                total += mask.sum(dtype=torch.float64)
                count += (mask > 0).sum()
            if self.values["rescale"]:
                divide_by_mean(mean, total)
            updates.append(mean if self.values["reduction"] == "mean" else mean.mul_(domains))
            passing.append(torch.stack([count, zeros]))
        return Consensus(updates, *torch.stack(passing).unbind(1))


def divide_by_mean(update: Float[Tensor, " params"], masks: Float[Tensor, ""]) -> None:
    """Divide by the mean of the mask, whose components sum up to `masks`; by 1 if all are 0."""
    update.div_(torch.where(masks > 0, masks / max(update.numel(), 1), 1.0))


def signs_of(gradient: Float[Tensor, " params"]) -> Int16[Tensor, " params"]:
    """Twice the sign of each component, plus 1 where it is not zero.

    So `add_signs` keeps apart what is zero in every domain and what only sums up to zero: the sum
    of the signs is the number halved and rounded down.
    """
    signs = torch.zeros_like(gradient, dtype=torch.int16)
    add_signs(signs, gradient)
    return signs


def add_signs(signs: Int16[Tensor, " params"], gradient: Float[Tensor, " params"]) -> None:
    """Add the sign of each component of `gradient` to `signs`."""
    for running, added in pieces(signs, gradient):
        sign = torch.sign(added).to(torch.int16)
        running.add_(sign, alpha=2).bitwise_or_(sign.bitwise_and_(1))
