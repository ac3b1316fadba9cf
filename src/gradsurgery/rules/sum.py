"""Sum and mean of the domains' gradients, the rules without surgery."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.kernels.network import Combination
from gradsurgery.rules.base import ComponentwiseRule, Consensus, State


class Sum(ComponentwiseRule):
    """g* = Σ_d g_d.

    >>> import torch
    >>> Sum()(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    tensor([4., 2.])
    """

    name = "sum"
    minimum_domains = 1

    @override
    def combination(self, domains: int) -> Combination | None:
        return Combination("sum")

    def start(self, gradient: Float[Tensor, " params"]) -> State:
        """The total after the first domain."""
        return (gradient,)

    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """The total after one more domain."""
        (total,) = state
        return (total.add_(gradient),)

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The totals."""
        return Consensus([total for (total,) in states])


class Mean(Sum):
    """g* = (1/D) Σ_d g_d: the gradient of the mean loss, Deep-All by one pass per domain.

    >>> import torch
    >>> Mean()(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    tensor([2., 1.])
    """

    name = "mean"

    @override
    def combination(self, domains: int) -> Combination | None:
        return Combination("sum", (float(domains),))

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The totals divided by D."""
        return Consensus([total.div_(domains) for (total,) in states])
