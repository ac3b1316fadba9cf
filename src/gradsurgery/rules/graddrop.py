"""GradDrop: keep one sign of each component, drawn at random (Chen et al. 2020)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels.network import Combination
from gradsurgery.rules.base import ComponentwiseRule, Consensus, State, pieces

_SOURCE = "Chen et al. 2020"


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
            "leak", 0.0, "fraction of the plain sum that passes", high=1.0, source=_SOURCE
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
