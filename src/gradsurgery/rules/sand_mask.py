"""SAND-mask: weigh each component by the agreement of signs and sizes (Shahtalebi et al. 2021)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels.network import Combination
from gradsurgery.rules.and_mask import RESCALE, add_signs, divide_by_mean, signs_of
from gradsurgery.rules.base import ComponentwiseRule, Consensus, State, reduction
from gradsurgery.rules.pieces import pieces

_SOURCE = "the middle of DomainBed's range"


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
            "tau", 0.5, "threshold τ of the agreement", high=1.0, open_high=True, source=_SOURCE
        ),
        Hyperparameter("k", 10.0, "steepness k of the mask", open_low=True, source="DomainBed"),
        reduction("mean", "DomainBed"),
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
        deviations = torch.zeros_like(
            gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)
        )
        return gradient, deviations, signs_of(gradient), torch.ones(())

    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """Welford's update, which does not cancel as a sum of squares would."""
        mean, deviations, signs, seen = state
        seen += 1
        for running, spread, added in pieces(mean, deviations, gradient):
            wide = added.to(spread.dtype)
            before = wide - running
            running.add_(before, alpha=1 / seen.item())
            spread.addcmul_(before, wide - running)
        add_signs(signs, gradient)
        return state

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The means weighed by their masks."""
        updates, passing = [], []
        for mean, deviations, signs, _ in states:
            total = torch.zeros((), dtype=torch.float64, device=mean.device)
            count, zeros = torch.zeros_like(total), torch.zeros_like(total)
            for running, spread, agreement in pieces(mean, deviations, signs):
                zeros += (agreement == 0).sum()
                margin = (
                    agreement.bitwise_right_shift_(1)
                    .abs_()
                    .to(spread.dtype)
                    .div_(domains)
                    .sub_(self.values["tau"])
                )
                mask = margin.mul_(self.values["k"]).div_(spread.div_(domains - 1)).tanh_()
                mask.clamp_(min=0).nan_to_num_(nan=0)  # 0/0: no spread, exactly at the threshold
                running.mul_(mask)
                total += mask.sum(dtype=torch.float64)
                count += (mask > 0).sum()
            if self.values["rescale"]:
                divide_by_mean(mean, total)
            updates.append(mean if self.values["reduction"] == "mean" else mean.mul_(domains))
            passing.append(torch.stack([count, zeros]))
        return Consensus(updates, *torch.stack(passing).unbind(1))
