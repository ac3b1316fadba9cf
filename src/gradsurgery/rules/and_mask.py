"""AND-mask: update where enough domains agree in sign (Parascandolo et al. 2021)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int16
from torch import Tensor
from typing_extensions import override

from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels.network import Combination
from gradsurgery.rules.base import ComponentwiseRule, Consensus, State, reduction
from gradsurgery.rules.pieces import pieces

_SOURCE = "DomainBed"
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
        Hyperparameter("tau", 1.0, "threshold τ of the agreement", high=1.0, source=_SOURCE),
        reduction("mean", _SOURCE),
        RESCALE,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.unanimous = self.values["tau"] == 1

    @override
    def combination(self, domains: int) -> Combination | None:
        divisor = domains if self.values["reduction"] == "mean" else 1
        constants = float(divisor), float(self._needed(domains))
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
            if self.values["reduction"] == "mean":
                total.div_(domains)
            if self.values["rescale"]:
                divide_by_mean(total, kept)
            updates.append(total)
            counts.append(torch.stack([kept if needed > 0 else kept - zeros, zeros]))
        return Consensus(updates, *torch.stack(counts).unbind(1))

    def _needed(self, domains: int) -> int:
        """An integer to compare with: no rounding of τ·D decides."""
        tau: float = self.values["tau"]
        return math.ceil(tau * domains - 1e-9)


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
