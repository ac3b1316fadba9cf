"""AND-mask, SAND-mask and GradDrop: what of a component passes depends on the domains' signs."""

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
        seen = torch.ones((), device="cpu")  # whatever the default is
        return gradient, torch.zeros_like(gradient), signs_of(gradient), seen

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


class GradDrop(ComponentwiseRule):
    """g*_n = Σ_d max(g_dn, 0) where P_n > U_n, and Σ_d min(g_dn, 0) elsewhere.

    P_n = ½ (1 + Σ_d g_dn / Σ_d |g_dn|) is the purity of the positive sign, U_n is drawn from the
    uniform distribution on [0, 1). Where all domains have the same sign nothing is dropped.

    leak: fraction ℓ in [0, 1] of the plain sum that passes: ℓ Σ_d g_dn + (1 − ℓ) g*_n. Default 0,
        as in the paper, whose leak may differ between the tasks; domains are treated alike.

    The paper drops gradients of activations at a shared layer; here they are the parameters'.
    `generator` draws U; without one the rule has its own, seeded with 0. Memory: two gradients.

    Source: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign
    Dropout", NeurIPS 2020, equation 1 and algorithm 1 with f the identity.

    >>> GradDrop()(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))  # no conflict, nothing dropped
    tensor([ 4., -6.])
    """

    name = "graddrop"

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "leak",
            0.0,
            "fraction of the plain sum that passes",
            high=1.0,
            source="Chen et al. 2020",
        ),
    )

    @override
    def combination(self, domains: int) -> Combination | None:
        return Combination("graddrop", (1.0, float(self.values["leak"])), draws=True)

    def start(self, gradient: Float[Tensor, " params"]) -> State:
        """The sums of the positive and of the negative parts."""
        return gradient.clamp(min=0), gradient.clamp(max=0)

    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """Both sums after one more domain."""
        for positive, negative, added in pieces(*state, gradient):
            positive.add_(added.clamp(min=0))
            negative.add_(added.clamp(max=0))
        return state

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """One of the two sums per component."""
        leak = self.values["leak"]
        for state in states:
            for positive, negative in pieces(*state):
                draws = self.random.uniform_like(positive)
                purity = positive / (positive - negative)
                # the purity of an all-zero component is NaN, and both of its sums are 0
                chosen = torch.where(purity > draws, positive, negative)
                positive.add_(negative).mul_(leak).add_(chosen, alpha=1 - leak)
        return Consensus([positive for positive, _ in states])


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
