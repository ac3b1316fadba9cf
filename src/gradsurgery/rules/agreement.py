"""Sign agreement of the domains' gradients, component by component (equation 2).

    Φ_n = 1 if sign(g_1n) = sign(g_2n) = … = sign(g_Dn), else 0

The domains are folded one at a time into a running total, in which NaN marks a conflict: it stays
NaN whatever is added, needs no second buffer, and tells "agrees at zero" from "conflicts". The
gradients themselves have to be finite, which callers check beforehand.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels import agreement as kernel
from gradsurgery.kernels import name_for
from gradsurgery.rules.base import ComponentwiseRule, State, reduction
from gradsurgery.rules.pieces import pieces, scratch

_SOURCE = "Mansilla et al. 2021"


class AgreementRule(ComponentwiseRule):
    """A rule that sums where the signs agree, and decides in `finish` what a conflict becomes."""

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (reduction("sum", _SOURCE),)

    def start(self, gradient: Float[Tensor, " params"]) -> State:
        """The running total, in which NaN will mark conflicts."""
        return (gradient,)

    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """The running total after one more domain."""
        (total,) = state
        fold_agreement(total, gradient)
        return state

    def divisor(self, domains: int) -> int:
        """What the sum over the domains is divided by."""
        return domains if self.values["reduction"] == "mean" else 1


def fold_agreement(total: Float[Tensor, " params"], gradient: Float[Tensor, " params"]) -> None:
    """Add `gradient` to `total` where the signs are equal, and set NaN where they are not."""
    if (name := name_for("fold_agreement", total, gradient)) is not None:
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
